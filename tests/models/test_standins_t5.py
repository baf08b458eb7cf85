import unicodedata

import pytest
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, T5Tokenizer

from utils.models import standins


@pytest.fixture(scope="module")
def tokenizer(texts):
    return AutoTokenizer.from_pretrained(standins.t5(texts))


def test_it_has_the_real_classes_and_special_tokens(texts, tokenizer):
    model = AutoModelForSeq2SeqLM.from_pretrained(standins.t5(texts))
    assert type(model).__name__ == "T5ForConditionalGeneration"
    assert type(tokenizer) is T5Tokenizer
    assert model.config.vocab_size == len(tokenizer)
    assert [tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id] == [0, 1, 2]
    assert model.config.decoder_start_token_id == tokenizer.pad_token_id
    shared = model.get_input_embeddings().weight
    assert model.lm_head.weight is shared and model.get_encoder().embed_tokens.weight is shared
    assert tokenizer.tokenize("<extra_id_0> nhiệt tình")[0] == "<extra_id_0>"


def test_text_comes_back_and_ends(tokenizer):
    text = "Ừ, Đà Nẵng nóng ghê: 39 độ lận! Bạn khoẻ hông?"
    ids = tokenizer(text)["input_ids"]
    assert ids[-1] == tokenizer.eos_token_id and tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_known_words_are_one_piece_and_every_vietnamese_letter_is_known(tokenizer):
    assert tokenizer.tokenize("giảng viên nhiệt tình") == ["▁giảng", "▁viên", "▁nhiệt", "▁tình"]
    marks = ("", "\u0300", "\u0301", "\u0303", "\u0309", "\u0323")
    vowels = [unicodedata.normalize("NFC", v + m) for v in "aăâeêioôơuưy" for m in marks]
    everything = "".join(vowels) + "đbcdghklmnpqrstvx"
    ids = tokenizer(" ".join(everything + everything.upper()))["input_ids"]
    assert tokenizer.unk_token_id not in ids
