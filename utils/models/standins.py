"""Tiny models with the real architectures and tokenizer classes, made from the course's texts.

With them, the lab profile runs the same cells as the profiles with real models. Each stand-in is
built once from the given texts, in a few seconds to a minute. It is saved under .cache/ with a
manifest, and the result is the same every time.
"""

import hashlib
import json
import string
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from unicodedata import normalize

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from utils.course import artifacts, paths
from utils.data.text import segment_all

RECIPE = "1"  # increase it when a stand-in's recipe changes, so that cached ones are not used


def _cached(name: str, texts: Sequence[str], build: Callable[[Path], None]) -> Path:
    """The folder of the stand-in for these texts; built if the cache has no complete one."""
    corpus = hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
    shelf, label = artifacts.Shelf(paths.cache() / "standins"), f"{name}-{corpus}"
    inputs = {"recipe": RECIPE}
    folder, _ = artifacts.find(label, shelf, inputs)
    if folder is None:
        published = artifacts.publish(label, shelf, metrics={}, inputs=inputs)
        with published as new, torch.random.fork_rng():  # later draws are those of a cached one
            build(new)
        folder = shelf.folder / label
    return folder


def _learn_merges(words: Counter[str], vocabulary: int) -> list[tuple[str, str]]:
    """Byte-pair merges over words; the last letter of a word is marked with </w>, as in fastBPE.

    The trainer's own `end_of_word_suffix` breaks ties by hash order, which differs between
    processes. So the last letter of each word is replaced by a private character during training.
    """
    letters = sorted({letter for word in words for letter in word})
    private = {letter: chr(0xF0000 + number) for number, letter in enumerate(letters)}
    public = {code: letter + "</w>" for letter, code in private.items()}
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, show_progress=False, min_frequency=2)
    corpus = [
        " ".join([word[:-1] + private[word[-1]]] * count) for word, count in sorted(words.items())
    ]
    tokenizer.train_from_iterator(corpus, trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [tuple("".join(public.get(c, c) for c in side) for side in pair) for pair in merges]


def _write_phobert_tokenizer(folder: Path, segmented: Sequence[str], vocabulary: int) -> None:
    """`bpe.codes` and `vocab.txt` in the formats that PhobertTokenizer reads."""
    from transformers import PhobertTokenizer

    words = Counter(word for text in segmented for word in text.split())
    merges = _learn_merges(words, vocabulary)
    codes = "".join(f"{left} {right} 1\n" for left, right in merges)
    (folder / "bpe.codes").write_text(codes, encoding="utf-8")
    (folder / "vocab.txt").write_text("", encoding="utf-8")
    bare = PhobertTokenizer(str(folder / "vocab.txt"), str(folder / "bpe.codes"))
    pieces: Counter[str] = Counter()
    for word, count in words.items():
        for piece in bare.bpe(word).split(" "):
            pieces[piece] += count
    ranked = sorted(pieces.items(), key=lambda item: (-item[1], item[0]))
    vocab = "".join(f"{piece} {count}\n" for piece, count in ranked)
    (folder / "vocab.txt").write_text(vocab, encoding="utf-8")
    tokenizer = PhobertTokenizer(str(folder / "vocab.txt"), str(folder / "bpe.codes"))
    tokenizer.save_pretrained(folder)


def _word_vectors(encoded: Sequence[Sequence[int]], vocabulary: int, size: int) -> torch.Tensor:
    """Word vectors (vocabulary, size) from co-occurrences, by an SVD of their positive PMI."""
    from scipy.sparse import csr_matrix
    from sklearn.utils.extmath import randomized_svd

    near: Counter[tuple[int, int]] = Counter()
    for ids in encoded:
        for position, left in enumerate(ids):
            for distance, right in enumerate(ids[position + 1 : position + 6], start=1):
                near[left, right] += 1 / distance
                near[right, left] += 1 / distance
    if not near:  # every text has only one token
        return torch.zeros(vocabulary, size)
    rows, columns = np.array(list(near)).T
    weights = np.array(list(near.values()))
    totals = np.bincount(rows, weights, vocabulary) + 1e-9
    context = totals**0.75 / (totals**0.75).sum()  # smoothed, as in word2vec
    pmi = np.log(weights / (totals[rows] * context[columns]))
    positive = csr_matrix((np.maximum(pmi, 0), (rows, columns)), shape=(vocabulary, vocabulary))
    left, strength, _ = randomized_svd(positive, n_components=size, random_state=0)
    found = left * np.sqrt(strength)
    vectors = np.zeros((vocabulary, size))
    vectors[:, : found.shape[1]] = found / found.std()
    return torch.tensor(vectors, dtype=torch.float32)


def phobert(texts: Sequence[str], *, vocabulary: int = 6000, seed: int = 0) -> Path:
    """A small RoBERTa like PhoBERT, 2 layers x 192; only its word vectors come from the texts.

    `texts` are not segmented; they are segmented here for the tokenizer and the vectors.
    """

    def build(folder: Path) -> None:
        from transformers import PhobertTokenizer, RobertaConfig, RobertaModel

        segmented = segment_all(texts)
        _write_phobert_tokenizer(folder, segmented, vocabulary)
        tokenizer = PhobertTokenizer.from_pretrained(folder)
        config = RobertaConfig(
            vocab_size=len(tokenizer),
            hidden_size=192,
            num_hidden_layers=2,
            num_attention_heads=6,
            intermediate_size=384,
            max_position_embeddings=258,  # as in PhoBERT
            type_vocab_size=1,
            bos_token_id=0,
            pad_token_id=1,
            eos_token_id=2,
            hidden_dropout_prob=0.3,
            attention_probs_dropout_prob=0.3,
        )
        torch.manual_seed(seed)
        model = RobertaModel(config, add_pooling_layer=False)
        encoded = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in segmented]
        vectors = _word_vectors(encoded, len(tokenizer), config.hidden_size)
        known = vectors.abs().sum(1) > 0
        with torch.no_grad():
            model.embeddings.word_embeddings.weight[known] = 0.2 * vectors[known]
        model.save_pretrained(folder)

    return _cached(f"phobert-{vocabulary}-{seed}", texts, build)


def gpt2(texts: Sequence[str], *, vocabulary: int = 2000, seed: int = 0) -> Path:
    """A GPT-2 of 3 layers x 128 with random weights; its byte-level BPE is trained on the texts."""

    def build(folder: Path) -> None:
        from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary,
            show_progress=False,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        )
        tokenizer.train_from_iterator(texts, trainer)
        learned = json.loads(tokenizer.to_str())["model"]
        merges = [tuple(pair) for pair in learned["merges"]]
        GPT2Tokenizer(vocab=learned["vocab"], merges=merges).save_pretrained(folder)
        end = learned["vocab"]["<|endoftext|>"]
        config = GPT2Config(
            vocab_size=len(learned["vocab"]),
            n_positions=128,
            n_embd=128,
            n_layer=3,
            n_head=4,
            bos_token_id=end,
            eos_token_id=end,
        )
        torch.manual_seed(seed)
        GPT2LMHeadModel(config).save_pretrained(folder)

    return _cached(f"gpt2-{vocabulary}-{seed}", texts, build)


_TONES = ("", *"\u0300\u0301\u0303\u0309\u0323")  # no mark, and the five tone marks of Vietnamese


def _unigram(texts: Sequence[str], vocabulary: int) -> list[tuple[str, float]]:
    """T5's pieces with their log-frequencies: special tokens first, and always all single letters.

    The Unigram trainer sums in hash order, so it finds different pieces in every process. Here the
    pieces are found by byte-pair merges, and only their scores are those of Unigram.
    """
    vowels = "aăâeêioôơuưy"
    toned = [normalize("NFC", vowel + tone) for vowel in vowels for tone in _TONES]
    letters = {
        *"".join(toned),
        *"".join(toned).upper(),
        *"đĐ",
        *string.digits,
        *string.ascii_letters,
        *string.punctuation,
    }
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, show_progress=False, initial_alphabet=sorted(letters)
    )
    tokenizer.train_from_iterator(texts, trainer)
    counts = Counter({piece: 1 for piece in tokenizer.get_vocab()})
    for text in texts:
        counts.update(tokenizer.encode(text).tokens)
    total = sum(counts.values())
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    pieces = [(piece, float(np.log(count / total))) for piece, count in ranked]
    return [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *pieces]


def t5(texts: Sequence[str], *, vocabulary: int = 1500, seed: int = 0) -> Path:
    """A T5 of 2 + 2 layers x 128 with Unigram pieces; only its word vectors come from the texts."""

    def build(folder: Path) -> None:
        from transformers import T5Config, T5ForConditionalGeneration, T5Tokenizer

        sentinels = 10
        pieces = _unigram(texts, vocabulary)
        pieces += [(f"<extra_id_{number}>", 0.0) for number in reversed(range(sentinels))]
        tokenizer = T5Tokenizer(vocab=pieces, extra_ids=sentinels)
        tokenizer.save_pretrained(folder)
        config = T5Config(
            vocab_size=len(tokenizer),
            d_model=128,
            d_kv=32,
            d_ff=256,
            num_layers=2,
            num_heads=4,
            decoder_start_token_id=tokenizer.pad_token_id,  # as in T5
        )
        torch.manual_seed(seed)
        model = T5ForConditionalGeneration(config)
        encoded = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        vectors = _word_vectors(encoded, len(tokenizer), config.d_model)
        known = vectors.abs().sum(1) > 0
        with torch.no_grad():
            model.shared.weight[known] = vectors[known]  # their variance is 1, as in T5
        model.save_pretrained(folder)

    return _cached(f"t5-{vocabulary}-{seed}", texts, build)
