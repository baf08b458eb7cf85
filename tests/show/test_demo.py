"""The web demo with tiny models: its choices, its answers, and who has access."""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise

import httpx
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
)

from tests.helpers import warm
from utils import models
from utils.course import artifacts, profiles
from utils.course.paths import ROOT
from utils.data.pairs import load_preferences
from utils.models import chat, saved, standins
from utils.models.saved import MODELS, Answer, Library, SavedModelError, answer_both
from utils.show import demo
from utils.votes import store as preferences

PROMPT = "giảng viên nhiệt tình"
LAB = profiles.TABLE["lab"]
TALK = {"timeout": 120, "trust_env": False}  # to the page: no proxy between
SETTINGS = {"temperature": 1.0, "max_tokens": 16, "seed": 3}
TEMPLATE = "{{ date_string }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<a>"


def save(kind, source, folder, sharpen=1.0):
    """A stand-in as a notebook saves it, its favourites among the words made more or less so."""
    model = kind.from_pretrained(source, dtype=torch.float32)
    with torch.no_grad():
        model.get_output_embeddings().weight *= sharpen
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)


def chat_base(source, folder):
    """A Llama with random weights and a chat template, in a folder of its own."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.chat_template = TEMPLATE
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 128}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    for part in (model, tokenizer):
        part.save_pretrained(folder)
    return model, tokenizer


@pytest.fixture(scope="module")
def shelf(texts, tmp_path_factory):
    """A shelf with the models of 02, an adapter of 03, and the T5 half of 08."""
    shelf = artifacts.Shelf(tmp_path_factory.mktemp("shelf") / "lab")
    sources = [standins.gpt2(texts, vocabulary=400, seed=seed) for seed in (0, 1)]
    with artifacts.publish("02_gpt2_ppo_negative_feedback", shelf, metrics={}) as folder:
        save(AutoModelForCausalLM, sources[0], folder / "reference", sharpen=4)
        save(AutoModelForCausalLM, sources[1], folder / "policy", sharpen=4)
    with artifacts.publish("03_llama_sft_vi_alpaca", shelf, metrics={}) as folder:
        base, tokenizer = chat_base(sources[0], shelf.folder.parent / "base")
        adapter = LoraConfig(r=2, init_lora_weights=False, target_modules=["q_proj", "v_proj"])
        adapted = get_peft_model(base, adapter)
        models.save_adapter(adapted, tokenizer, folder, str(shelf.folder.parent / "base"))
    with artifacts.publish("08_dpo_t5_gpt2_and_demo", shelf, metrics={}) as folder:
        for seed, name in enumerate(("t5_sft", "t5_dpo")):
            source = standins.t5(texts, vocabulary=300, seed=seed)
            save(AutoModelForSeq2SeqLM, source, folder / name, sharpen=0.2)
    return shelf


@pytest.fixture(scope="module")
def library(shelf):
    return Library(shelf)


@pytest.fixture
def store(tmp_path):
    return preferences.open_store(f"sqlite:///{tmp_path / 'votes.sqlite'}")


def both(library, keys=("gpt2-base", "gpt2-ppo"), prompt=PROMPT, **settings):
    *_, last = answer_both(library, keys, prompt, **{**SETTINGS, **settings})
    return last


# --- What is offered -----------------------------------------------------------------------------


def test_what_was_not_made_is_shown_with_its_notebook_and_cannot_be_chosen(shelf, store):
    config = demo.build(shelf, store).get_config_file()
    made = {"gpt2-base", "gpt2-ppo", "llama-base", "llama-sft", "t5-sft", "t5-dpo"}
    dropdowns = [c["props"] for c in config["components"] if c["type"] == "dropdown"]
    assert [{key for _, key in dropdown["choices"]} for dropdown in dropdowns] == [made, made]
    pages = [c["props"].get("value", "") for c in config["components"] if c["type"] == "html"]
    missing = next(page for page in pages if "Not made yet" in page)
    boxes = re.findall(r"<div>(.*?)</div>", missing)
    assert [re.search(r"run notebook (\d+) first", box).group(1) for box in boxes] == [
        "04",
        "05",
        "07",
        "08",
    ]
    for entry in MODELS:
        assert (f">{entry.label}<" in missing) == (entry.key not in made)


def test_the_page_is_in_the_language_of_the_edition(shelf, store, monkeypatch):
    monkeypatch.setenv("COURSE_LANG", "vi")
    page = str(demo.build(shelf, store).get_config_file())
    for words in (
        "So sánh hai mô hình",
        "GPT-2 nhận xét · PPO",
        "chạy notebook 04 trước",
        "A tốt hơn",
    ):
        assert words in page
    for words in ("Compare", "feedback", "Not made yet", "is better"):
        assert words not in page
    assert "Hãy chọn hai mô hình." in compared(Library(shelf), keys=(None, None))["status"]


def test_every_model_names_a_reference_and_a_beta_that_exist():
    keys = [entry.key for entry in MODELS]
    assert len(set(keys)) == len(keys)
    for entry in MODELS:
        assert bool(entry.reference) == bool(entry.beta_field)
        assert not entry.reference or (entry.reference in keys and entry.beta > 0)


@pytest.mark.parametrize("key", ["llama-dpo", "gpt2-dpo", "nonsense", None])
def test_a_model_that_is_not_there_is_refused_by_the_server_too(library, key):
    with pytest.raises(SavedModelError, match="Choose two models"):
        library.get(key)


def test_an_altered_artifact_is_not_offered_nor_loaded(shelf, tmp_path):
    copy = artifacts.Shelf(tmp_path / "lab")
    artifacts._copy(shelf.folder / MODELS[0].artifact, copy.folder / MODELS[0].artifact)
    before = Library(copy)
    weights = copy.folder / MODELS[0].artifact / "policy" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    assert set(before.available) == {"gpt2-base", "gpt2-ppo"}
    assert Library(copy).available == {}
    with pytest.raises(SavedModelError, match=r"altered.*run notebook 02 first"):
        before.get("gpt2-ppo")


def test_a_folder_that_is_no_model_gives_one_sentence(tmp_path):
    shelf = artifacts.Shelf(tmp_path)
    with artifacts.publish(MODELS[0].artifact, shelf, metrics={}) as folder:
        (folder / "reference").mkdir()
        (folder / "reference" / "config.json").write_text("{}")
    with pytest.raises(SavedModelError, match="cannot be loaded") as caught:
        Library(shelf).get("gpt2-base")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 150


def test_only_the_latest_models_stay_in_memory(shelf, monkeypatch):
    monkeypatch.setattr(saved, "KEPT", 2)
    library = Library(shelf)
    first = library.get("gpt2-base")
    library.get("t5-sft")
    assert library.get("gpt2-base") is first
    library.get("t5-dpo")
    assert list(library._loaded) == ["gpt2-base", "t5-dpo"]


def test_an_adapter_is_read_on_its_base_and_asked_through_its_template(shelf, library):
    base, adapted = library.get("llama-base"), library.get("llama-sft")
    ids = torch.tensor([adapted.encode(PROMPT)])
    trained, _ = models.chat_model(str(shelf.folder.parent / "base"), profiles.choose())
    with torch.inference_mode():
        of_base, of_adapted = base.model(ids).logits, adapted.model(ids).logits
        with adapted.model.disable_adapter():
            off = adapted.model(ids).logits
        torch.testing.assert_close(of_base, trained(ids).logits)
    torch.testing.assert_close(of_base, off)
    assert (of_adapted - of_base).abs().max() > 1e-2
    read = adapted.tokenizer.decode(adapted.encode(PROMPT))
    assert read == f"{chat.TEMPLATE['date_string']}<user>{PROMPT}<a>"


@pytest.mark.parametrize("kind", ["llama", "qwen", "qwen3", "sailor"])
def test_a_stand_in_base_is_made_from_the_text_it_was_made_from(shelf, tmp_path, monkeypatch, kind):
    copy, documents = artifacts.Shelf(tmp_path / "lab"), []
    source = shelf.folder / "03_llama_sft_vi_alpaca"
    with artifacts.publish(source.name, copy, metrics={}) as folder:
        shutil.copytree(source / "adapter", folder / "adapter")
        note = {"base": f"{kind} {models.STAND_IN}"}
        (folder / models.BASE_NOTE).write_text(json.dumps(note))

    def built(texts, tokens):
        documents.extend(texts)
        return shelf.folder.parent / "base"

    monkeypatch.setitem(saved.chat_standins.BUILDERS, kind, built)
    monkeypatch.setenv("COURSE_MODEL", "other")  # the base named by the adapter counts
    Library(copy).get("llama-sft")
    assert documents == models.base_documents(load_preferences(quiet=True))


# --- What is answered ----------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [("gpt2-base", "gpt2-ppo"), ("t5-sft", "llama-sft")])
def test_both_answers_grow_side_by_side(library, keys):
    pairs = list(answer_both(library, keys, PROMPT, **SETTINGS))
    for before, after in pairwise(pairs):
        for one, two in zip(before, after, strict=True):
            assert one.tokens <= two.tokens <= one.tokens + 1
            assert two.text.startswith(one.text)
    assert pairs[0][0].tokens == pairs[0][1].tokens == 1
    assert all(2 <= answer.tokens <= 16 for answer in pairs[-1])


@pytest.mark.parametrize("key", ["gpt2-ppo", "t5-dpo", "llama-sft"])
def test_at_temperature_zero_it_writes_what_generate_writes(library, key):
    loaded = library.get(key)
    prompt = saved.prompt_tokens(loaded, PROMPT)
    written = list(saved.write(loaded, prompt, [0.5] * 12, 0.0))
    ids = torch.tensor([prompt])
    expected = loaded.model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False
    )[0].tolist()
    start = 1 if loaded.model.config.is_encoder_decoder else len(prompt)
    assert written == expected[start:]
    assert list(saved.write(loaded, prompt, [0.5] * 12, 1e-4)) == written


def test_an_answer_stops_at_its_end_token(library):
    loaded = library.get("gpt2-base")
    written = list(saved.write(loaded, [5, 6], [0.1] * 8, 0.0))
    loaded.model.generation_config.eos_token_id = [loaded.tokenizer.eos_token_id, written[2]]
    try:
        stopped = list(saved.write(loaded, [5, 6], [0.1] * 8, 0.0))
    finally:
        loaded.model.generation_config.eos_token_id = loaded.tokenizer.eos_token_id
    assert stopped == written[: written.index(written[2]) + 1]


def test_the_draws_follow_the_model_s_probabilities(library):
    loaded, count = library.get("gpt2-base"), 64
    with torch.inference_mode():
        expected = (loaded.model(torch.tensor([[5, 6]])).logits[0, -1] / 0.3).softmax(-1)
    draws = [(number + 0.5) / count for number in range(count)]
    first = [next(saved.write(loaded, [5, 6], [draw], 0.3)) for draw in draws]
    shares = torch.bincount(torch.tensor(first), minlength=len(expected)) / count
    assert expected.max() > 2 / count  # otherwise nothing is tested
    assert (shares - expected).abs().max() <= 1 / count


def test_the_seed_decides_the_answers_and_one_model_can_meet_itself(library):
    assert both(library) == both(library)
    assert [a.text for a in both(library, seed=4)] != [a.text for a in both(library)]
    itself = both(library, ("gpt2-base", "gpt2-base"))
    assert itself[0].text != itself[1].text


def hand_logp(loaded, prompt, answer):
    """ln π(answer | prompt), one forward pass per token."""
    total = 0.0
    for position, token in enumerate(answer):
        before = answer[:position]
        with torch.no_grad():
            if loaded.model.config.is_encoder_decoder:
                start = [loaded.model.config.decoder_start_token_id]
                seen = {"input_ids": [prompt], "decoder_input_ids": [start + before]}
            else:
                seen = {"input_ids": [prompt + before]}
            logits = loaded.model(**{name: torch.tensor(ids) for name, ids in seen.items()}).logits
        total += logits[0, -1].double().log_softmax(-1)[token].item()
    return total


@pytest.mark.parametrize("pair", [("gpt2-ppo", "gpt2-base"), ("t5-dpo", "t5-sft")])
def test_both_answers_get_the_implicit_reward_of_a_loop_by_hand(library, pair):
    policy, reference = (library.get(key) for key in pair)
    beta = {"gpt2-ppo": LAB.ppo.kl_coef, "t5-dpo": LAB.small_dpo.beta}[pair[0]]
    prompt = saved.prompt_tokens(policy, PROMPT)
    answers = []
    for seed, by in enumerate((policy, reference)):
        draws = torch.rand(10, generator=torch.Generator().manual_seed(seed)).tolist()
        answers.append(saved.Written(by, list(saved.write(by, prompt, draws, 1.0))))
    rewards = saved.implicit_rewards(library, policy, PROMPT, tuple(answers))
    for reward, answer in zip(rewards, answers, strict=True):
        tokens = answer.tokens
        ratio = hand_logp(policy, prompt, tokens) - hand_logp(reference, prompt, tokens)
        assert reward == pytest.approx(beta * ratio, abs=1e-4)
        assert abs(reward) > 1e-2  # the two models do differ


def test_a_model_scores_an_answer_in_its_own_tokens(library):
    ppo, t5 = library.get("gpt2-ppo"), library.get("t5-dpo")
    written = list(saved.write(ppo, saved.prompt_tokens(ppo, PROMPT), [0.3] * 6, 1.0))
    open_end = saved.Written(ppo, [token for token in written if token not in ppo.ends])
    ended = saved.Written(ppo, [*open_end.tokens, ppo.tokenizer.eos_token_id])
    plain = t5.tokenizer(ppo.text(open_end.tokens), add_special_tokens=False)["input_ids"]
    assert saved.answer_tokens(t5, open_end) == plain
    assert saved.answer_tokens(t5, ended) == [*plain, t5.tokenizer.eos_token_id]
    assert saved.answer_tokens(ppo, ended) == ended.tokens
    chat_model = library.get("llama-sft")
    chat_ids = saved.answer_tokens(chat_model, saved.Written(t5, [*plain]))
    assert not set(chat_ids) & chat_model.ends


def test_an_answer_that_a_model_cannot_read_has_no_reward(library):
    """Another model's answer has more tokens for a GPT-2 than its context has positions."""
    ppo, t5 = library.get("gpt2-ppo"), library.get("t5-dpo")
    words = t5.tokenizer("em " * ppo.context, add_special_tokens=False)["input_ids"]
    long, short, none = (saved.Written(t5, ids) for ids in (words, words[:3], []))
    rewards = saved.implicit_rewards(library, ppo, PROMPT, (long, short, none))
    assert rewards[0] is None is rewards[2] and rewards[1] is not None


def test_each_model_with_a_reference_scores_both_answers(shelf):
    library = Library(shelf)
    one, two = both(library)
    assert one.rewards[0] is two.rewards[0] is None  # the base has no reference
    assert None not in (one.rewards[1], two.rewards[1])
    swapped = both(library, ("gpt2-ppo", "gpt2-base"))
    assert all(answer.rewards[0] is not None for answer in swapped)
    assert all(answer.rewards[1] is None for answer in swapped)
    mixed = both(library, ("gpt2-ppo", "t5-dpo"))
    assert all(None not in answer.rewards for answer in mixed)
    del library.available["gpt2-base"]
    assert both(library, ("gpt2-ppo", "gpt2-ppo"))[0].rewards == (None, None)


def no_memory(*_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")


def test_out_of_memory_is_one_sentence_and_the_page_lives_on(shelf, monkeypatch):
    library = Library(shelf)
    with monkeypatch.context() as patch:
        patch.setitem(saved.LOADERS, "causal", no_memory)
        status = compared(library)["status"]
        assert "Out of memory" in status and "choose smaller models" in status
    with monkeypatch.context() as patch:
        patch.setattr(saved.losses, "inverse_cdf", no_memory)
        assert "Out of memory" in compared(library)["status"]
    with monkeypatch.context() as patch:  # there is no room for the references: no scores
        patch.setattr(saved.logprobs, "_decoder_only", no_memory)
        shown = compared(library)
        assert "Which answer is better?" in shown["status"] and "nat" not in shown["note_a"]
    assert "Which answer is better?" in compared(library)["status"]


def test_other_models_make_room_before_the_next_one_loads(shelf, monkeypatch):
    library, seen = Library(shelf), []
    monkeypatch.setattr(saved, "KEPT", 2)
    load = saved.load
    monkeypatch.setattr(
        saved, "load", lambda entry, shelf: seen.append([*library._loaded]) or load(entry, shelf)
    )
    for key in ("gpt2-base", "gpt2-ppo", "t5-sft"):
        library.get(key)
    assert seen == [[], ["gpt2-base"], ["gpt2-ppo"]]  # never three at once

    def only_alone(entry, shelf):
        return no_memory() if len(library._loaded) > 1 else load(entry, shelf)

    monkeypatch.setattr(saved, "KEPT", 4)
    monkeypatch.setattr(saved, "load", only_alone)
    library.get("t5-dpo", keep=["t5-sft"])
    assert [*library._loaded] == ["t5-sft", "t5-dpo"]


def test_the_start_of_the_votes_stands_beside_the_adapter_that_learned_from_them(shelf, tmp_path):
    own = artifacts.Shelf(tmp_path / "lab")
    source = shelf.folder / "03_llama_sft_vi_alpaca"
    base = str(shelf.folder.parent / "base")
    for start in (None, source):  # a bare model, as on a GPU; then an adapter, as in the lab
        with artifacts.publish("07_collect_preferences", own, metrics={}) as folder:
            shutil.copytree(source / "adapter", folder / "adapter")
            shutil.copy(source / models.BASE_NOTE, folder)
            models.save_start(start or tmp_path, folder)
        library = Library(own)
        begun, tuned = library.get("llama-start"), library.get("llama-votes")
        ids = torch.tensor([tuned.encode(PROMPT)])
        expected = tuned.model if start else models.chat_model(base, profiles.choose())[0]
        with torch.inference_mode():
            torch.testing.assert_close(begun.model(ids).logits, expected(ids).logits)
        assert all(
            None not in (a.rewards[1],) for a in both(library, ("llama-start", "llama-votes"))
        )


def test_a_letter_of_several_tokens_is_shown_when_it_is_whole(library):
    loaded = library.get("gpt2-base")
    ids = loaded.tokenizer("☂ ừ")["input_ids"]
    shown = [loaded.text(ids[:end]) for end in range(1, len(ids) + 1)]
    assert all("\ufffd" not in text for text in shown)
    assert shown[0] == "" and shown[-1] == "☂ ừ"


# --- What the page does --------------------------------------------------------------------------


def compared(library, prompt=PROMPT, keys=("gpt2-base", "gpt2-ppo"), blind=False, tokens=8):
    *_, last = demo._compare(library, *keys, prompt, 1.0, tokens, 3, blind)
    return dict(
        zip(("a", "b", "note_a", "note_b", "status", "done"), last, strict=False), rest=last
    )


@pytest.mark.parametrize(
    "prompt, sentence",
    [
        ("", "Type a question."),
        (None, "Type a question."),
        (" \n\t ", "Type a question."),
        ("rất " * 200, r"too long \(\d+ tokens; GPT-2 feedback · base accepts 64 tokens\)"),
        ("a" * 5000, r"too long \(5000 characters"),
    ],
)
def test_an_empty_or_endless_prompt_gets_a_sentence(library, prompt, sentence):
    shown = compared(library, prompt)
    assert re.search(sentence, shown["status"]) and 'class="status-line bad"' in shown["status"]
    assert shown["a"] == shown["b"] == "" and shown["done"] is None
    assert all(not button["interactive"] for button in shown["rest"][6:])


def test_a_book_is_refused_before_it_is_cut_into_tokens(library, monkeypatch):
    monkeypatch.setattr(saved.Loaded, "encode", lambda *_: pytest.fail("tokenised"))
    assert "5000000 characters" in compared(library, "a" * 5_000_000)["status"]


def test_no_model_chosen_gets_a_sentence(library):
    assert "Choose two models." in compared(library, keys=(None, None))["status"]


def test_a_prompt_at_the_limit_still_gets_an_answer(library):
    loaded = library.get("gpt2-base")
    prompt, limit = "x", loaded.context // 2
    while len(loaded.encode(prompt + " x")) <= limit:
        prompt += " x"
    pair = both(library, ("gpt2-base", "gpt2-base"), prompt, max_tokens=256, temperature=0.0)
    assert pair[0].tokens <= loaded.context - limit + 1
    with pytest.raises(SavedModelError, match="too long"):
        both(library, prompt=prompt + " x x")


def test_names_and_rewards_are_hidden_until_the_vote(library, store):
    blind = compared(library, blind=True)
    for entry in blind["done"].entries:
        assert entry.label not in str((blind["note_a"], blind["note_b"], blind["status"]))
    assert "nat" not in blind["note_a"] + blind["note_b"]
    notes = demo._vote(store, "a", blind["done"], "An")[:2]
    for note, entry in zip(notes, blind["done"].entries, strict=True):
        assert entry.label in note
    assert all(note.count(" nat<") == 1 for note in notes)  # PPO scores both, its reference none
    assert all("GPT-2 feedback · PPO: <b>" in note for note in notes)


def test_blind_order_is_drawn_and_the_vote_knows_it(library, monkeypatch):
    texts = {a.text: k for a, k in zip(both(library), ("gpt2-base", "gpt2-ppo"), strict=True)}
    votes = []
    for drawn in (0, 1):
        monkeypatch.setattr(demo.secrets, "randbelow", lambda limit, drawn=drawn: drawn % limit)
        shown = compared(library, blind=True, tokens=16)
        vote = shown["done"].vote("a", "An")
        assert (vote.answer_a, vote.answer_b) == (shown["a"], shown["b"])
        assert (vote.model_a, vote.model_b) == (texts[vote.answer_a], texts[vote.answer_b])
        votes.append(vote)
    assert [vote.model_a for vote in votes] == ["gpt2-base", "gpt2-ppo"]
    assert votes[0].item == votes[1].item and votes[0].swapped != votes[1].swapped
    assert compared(library)["done"].entries[0].key == "gpt2-base"  # not blind: as chosen


def test_a_round_is_one_vote_however_often_it_is_clicked(library, store):
    done = compared(library)["done"]
    *_, after, _, _, _ = demo._vote(store, "b", done, "  An  ")
    assert "Send another question first." in demo._vote(store, "a", after, "An")[2]
    demo._vote(store, "b", done, "An")  # a click that was sent before the page changed
    assert store.votes() == []  # the vote waits, because nobody knows who the visitor is
    (vote,) = store.votes(status="waiting")
    assert vote == replace(done.vote("b", "An"), voted_at=vote.voted_at, status="waiting")
    assert (vote.source, vote.seed, vote.question) == ("demo", 3, PROMPT)
    assert "Send another question first." in demo._vote(store, "a", None, None)[2]
    assert len(store.votes(campaign="demo", status=None)) == 1


def test_a_nameless_visitor_is_a_guest_and_a_long_name_is_cut(library):
    done = compared(library)["done"]
    assert done.vote("tie", "  ").annotator == "khách"
    assert len(done.vote("tie", "x" * 999).annotator) == demo.MAX_NAME


def test_a_vote_that_cannot_be_kept_is_said_and_can_be_repeated(library, store, monkeypatch):
    def broken(vote):
        raise preferences.VoteError("The votes cannot be reached: <b>see</b>.")

    monkeypatch.setattr(store, "add", broken)
    *_, status, _, first, _, _ = demo._vote(store, "a", compared(library)["done"], "An")
    assert "Your vote was not saved" in status and "&lt;b&gt;" in status
    assert first["interactive"]


def test_no_word_of_a_model_or_visitor_goes_into_html(library):
    word = "<script>alert(1)</script>"
    entry = replace(MODELS[1], name=word)
    answer = Answer(word, 1, (0.5, None))
    note = demo._note((entry, MODELS[0]), (answer, answer), 0)
    assert "<script" not in note and "alert(1)&lt;/script&gt;" in note
    assert "<script" not in demo._status(word)
    shown = compared(library, f"{PROMPT} {word}", keys=("t5-sft", "t5-sft"))
    assert word in shown["done"].question
    assert "<script" not in shown["note_a"] + shown["note_b"] + shown["status"]


# --- Whom it lets in -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(shelf, tmp_path_factory):
    """The running page: its address, its store, the numbers of its events."""
    folder = tmp_path_factory.mktemp("votes")
    store = preferences.open_store(f"sqlite:///{folder / 'votes.sqlite'}")
    page = demo.build(shelf, store)
    with pytest.MonkeyPatch.context() as patch:  # what gradio would otherwise obey
        patch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
        patch.setenv("GRADIO_SHARE", "True")
        patch.setenv("GRADIO_ALLOWED_PATHS", "/")
        address = demo.launch(page)
    yield page, address, store
    page.close(verbose=False)


def event(client, number, session, data):
    """Send an event as the page does and wait for its end; what it put out."""
    body = {"fn_index": number, "session_hash": session, "data": data}
    client.post("gradio_api/queue/join", json=body).raise_for_status()
    with client.stream("GET", f"gradio_api/queue/data?session_hash={session}") as stream:
        for line in stream.iter_lines():
            message = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
            if message.get("msg") == "process_completed":
                assert message["success"], message
                return message["output"]["data"]
    raise AssertionError("the stream ended before the event")


def test_twenty_visitors_at_once_get_their_own_answers_and_votes(served, library):
    page, address, store = served
    compare, vote_a, *_ = page.fns

    def visit(number):
        session = f"visitor{number}"
        with httpx.Client(base_url=address, **TALK) as client:
            asked = ["gpt2-base", "gpt2-ppo", f"{PROMPT} {number}", 1.0, 8, number, False]
            shown = event(client, compare, session, asked)
            status = event(client, vote_a, session, [None, f"visitor {number}"])[2]
        return shown[:2], status

    with ThreadPoolExecutor(20) as pool:
        visits = list(pool.map(visit, range(20)))
    votes = {vote.annotator: vote for vote in store.votes(source="demo", status="waiting")}
    assert len(votes) == len(store.votes(status=None)) == 20
    for number, (texts, status) in enumerate(visits):
        alone = both(library, prompt=f"{PROMPT} {number}", max_tokens=8, seed=number)
        assert texts == [answer.text for answer in alone]
        assert "your vote is saved" in status
        vote = votes[f"visitor {number}"]
        kept = [preferences.storable(text) for text in texts]
        assert [vote.answer_a, vote.answer_b, vote.seed, vote.choice] == [*kept, number, "a"]


def test_a_forged_choice_ends_in_an_error_not_in_a_model(served):
    page, address, _ = served
    body = {"fn_index": next(iter(page.fns)), "session_hash": "forger"}
    body["data"] = ["../../secret", "gpt2-ppo", PROMPT, 1.0, 8, 0, False]
    with httpx.Client(base_url=address, **TALK) as client:
        client.post("gradio_api/queue/join", json=body)
        with client.stream("GET", "gradio_api/queue/data?session_hash=forger") as stream:
            text = "".join(stream.iter_text())
    assert '"success":false' in text and "Traceback" not in text


def test_it_listens_on_the_loopback_address_only(served):
    page, address, _ = served
    assert address.startswith("http://127.0.0.1:") and page.share_url is None
    listening = [s for server in page.server.servers for s in server.sockets]
    assert {s.getsockname()[0] for s in listening} == {"127.0.0.1"}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing; says which address would
        own = probe.getsockname()[0]
    with socket.socket() as outside:
        outside.settimeout(5)
        assert own == "127.0.0.1" or outside.connect_ex((own, page.server_port)) != 0


@pytest.mark.parametrize(
    "headers, status",
    [
        ({}, 200),
        ({"Host": "localhost:{port}"}, 200),
        ({"Host": "[::1]:{port}"}, 200),
        ({"Origin": "http://127.0.0.1:{port}"}, 200),
        ({"Host": "evil.example:{port}"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": ""}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_a_foreign_host_or_origin_is_turned_away(served, headers, status):
    page, address, _ = served
    headers = {name: value.format(port=page.server_port) for name, value in headers.items()}
    assert httpx.get(address, headers=headers, **TALK).status_code == status
    join = httpx.post(f"{address}gradio_api/queue/join", json={}, headers=headers, **TALK)
    assert (join.status_code == 403) == (status == 403)


@pytest.mark.parametrize(
    "path",
    [
        "docs",
        "openapi.json",
        "config",
        "monitoring",
        "gradio_api/info",
        "gradio_api/openapi.json",
        "gradio_api/runs",
        "gradio_api/upload",
        "gradio_api/call/_compare",
        "gradio_api/run/predict",
        "gradio_api/file=/etc/hostname",
        "gradio_api/proxy=http://127.0.0.1:1/",
        "static/../../../gradio_api/info",
        "static/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/hostname",
    ],
)
def test_all_but_the_page_s_own_paths_are_closed(served, path):
    _, address, _ = served
    for method in ("GET", "POST"):
        answer = httpx.request(method, f"{address}{path}", **TALK)
        assert answer.status_code in (403, 404, 405), f"{method} {path}: {answer.status_code}"


@pytest.mark.parametrize("way", [{"host": "0.0.0.0"}, {"share": True}])
@pytest.mark.parametrize("auth", [None, ("demo", "")])
def test_other_machines_never_get_in_without_a_password(shelf, store, way, auth):
    with pytest.raises(demo.DemoError, match="without a password"):
        demo.launch(demo.build(shelf, store), **way, auth=auth)


def test_other_machines_get_in_when_asked_with_the_password(shelf, store):
    page = demo.build(shelf, store)
    demo.launch(page, host="0.0.0.0", auth=("demo", "mật khẩu"))
    try:
        address = f"http://127.0.0.1:{page.server_port}/"
        headers = {"Host": "classroom.example"}
        with httpx.Client(base_url=address, headers=headers, **TALK) as client:
            assert "GPT-2" not in client.get("/").text
            join = {"fn_index": 0, "session_hash": "x", "data": []}
            assert client.post("gradio_api/queue/join", json=join).status_code == 401
            wrong = client.post("login", data={"username": "demo", "password": "x"})
            assert wrong.status_code == 400
            right = client.post("login", data={"username": "demo", "password": "mật khẩu"})
            assert right.status_code == 200
            assert "GPT-2" in client.get("/").text
            assert client.get("gradio_api/info").status_code == 404
    finally:
        page.close(verbose=False)


def test_a_request_as_long_as_a_book_is_refused_unread(served):
    _, address, _ = served
    body = {"fn_index": 0, "session_hash": "x", "data": ["x" * demo.LARGEST]}
    answer = httpx.post(f"{address}gradio_api/queue/join", json=body, **TALK)
    assert answer.status_code == 413
    parts = (b"x" * 10_000 for _ in range(100))  # without a length beforehand
    try:
        refused = httpx.post(f"{address}gradio_api/queue/join", content=parts, **TALK)
        assert refused.status_code >= 400
    except httpx.HTTPError:
        pass  # the connection was closed
    assert httpx.get(address, headers={"host": "["}, **TALK).status_code in (400, 403)


def test_a_body_without_a_length_is_not_read_to_its_end():
    read = []

    async def app(scope, receive, send):
        while (message := await receive())["type"] == "http.request":
            read.append(message["body"])

    parts = iter([{"type": "http.request", "body": b"x" * 9_000, "more_body": True}] * 100)

    async def receive():
        return next(parts, {"type": "http.disconnect"})

    scope = {"type": "http", "path": "/gradio_api/queue/join", "headers": []}
    asyncio.run(demo._guarded(app, local=False)(scope, receive, None))
    assert 0 < sum(map(len, read)) <= demo.LARGEST


def test_make_demo_says_where_it_is_and_ends_on_interrupt(tmp_path):
    environment = os.environ | warm.PLAIN
    environment |= {"COURSE_ARTIFACTS": str(tmp_path), "COURSE_PROFILE": "lab"}
    process = subprocess.Popen(
        [warm.python(environment), ROOT / "tools" / "demo.py"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+/", line).group()
        assert "Not made yet" in httpx.get(address, **TALK).text
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0 and errors == ""
