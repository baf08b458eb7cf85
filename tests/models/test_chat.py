"""Chat rows, log-probabilities and answers against loops, and against TRL's results."""

import copy
import json
import shutil

import pytest
import torch

from tests.helpers import chat_worker as worker
from utils import models
from utils.models.chat import (
    TEMPLATE,
    answer_ids,
    answer_logps,
    asked,
    fitting,
    preference_rows,
    prompt_ids,
    reply,
    sampled_kl,
    sft_rows,
)


@pytest.fixture(scope="module", params=["llama", "qwen"])
def name(request):
    return request.param


@pytest.fixture(scope="module")
def folder(name):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(models.CHAT_VARIABLE, name)
        return worker.stand_in()


@pytest.fixture(scope="module")
def tokenizer(folder):
    return models.chat_tokenizer(folder)


@pytest.fixture(scope="module")
def plain(folder):
    """A model in fp32 whose layers have larger weights than a new model's."""
    model = models.chat_model(folder, worker.LAB, quantised=False)[0]
    for name, parameter in model.named_parameters():
        if "proj" in name:
            parameter.data *= 8
    return model


@pytest.fixture(scope="module")
def data():
    return worker.pairs()["train"]


# --- Templates -----------------------------------------------------------------------------------


def test_the_date_of_the_template_is_fixed(tokenizer, name, data):
    text = tokenizer.decode(prompt_ids(tokenizer, "Thủ đô của Pháp?"))
    assert ("Today Date: 26 Jul 2024" in text) == (name == "llama")
    if name == "llama":  # without it the template uses today's date
        free = tokenizer.apply_chat_template(asked("?"), tokenize=False)
        assert "Today Date" in free and "26 Jul 2024" not in free


def test_the_beginning_stands_once_and_the_assistant_speaks_next(tokenizer, name):
    ids = prompt_ids(tokenizer, "Thủ đô của Pháp?")
    text = tokenizer.decode(ids)
    begins = {"llama": "<|begin_of_text|>", "qwen": "<|im_start|>system"}[name]
    ends = {"llama": "<|start_header_id|>assistant<|end_header_id|>\n\n"}.get(
        name, "<|im_start|>assistant\n"
    )
    assert text.count(begins) == 1 and text.startswith(begins) and text.endswith(ends)
    assert "Thủ đô của Pháp?" in text
    if tokenizer.bos_token_id is not None:
        assert ids.count(tokenizer.bos_token_id) == 1


def test_an_answer_ends_with_the_end_of_turn(tokenizer):
    ids = answer_ids(tokenizer, "Pa-ri.")
    end = ids.index(tokenizer.eos_token_id)
    assert tokenizer.decode(ids[:end]) == "Pa-ri."
    assert tokenizer.decode(ids[end + 1 :]).strip() == ""  # Qwen's template ends the line
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


# --- What TRL makes of the rows ------------------------------------------------------------------


def test_sft_learns_exactly_the_answer_and_its_end(folder, tokenizer, data, tmp_path):
    few = data.select(range(8))
    model = worker.adapted(folder)
    trainer = worker.sft_trainer(model, folder, few, tmp_path, 2, 1, max_length=None)
    for row, pair in zip(trainer.train_dataset, few, strict=True):
        prompt = prompt_ids(tokenizer, pair["question"])
        answer = answer_ids(tokenizer, pair["chosen"])
        learned = row["labels"][len(prompt) :]
        assert row["input_ids"][: len(prompt)] == prompt  # the fixed date, one beginning
        assert row["labels"][: len(prompt)] == [-100] * len(prompt)
        assert learned[: len(answer)] == answer == row["input_ids"][len(prompt) :][: len(answer)]
        assert tokenizer.decode(learned[len(answer) :]).strip() == ""  # Qwen's line break
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(8)])
    padding = batch["attention_mask"] == 0
    assert padding.any() and (batch["labels"][padding] == -100).all()
    assert (batch["labels"] == tokenizer.eos_token_id).sum() == 8


def test_packing_mixes_no_rows(folder, tokenizer, data, tmp_path):
    """The loss of a packed batch is that of its rows one by one."""
    few = data.select(range(12))
    model = worker.shaken(worker.adapted(folder)).eval()
    alone = worker.sft_trainer(model, folder, few, tmp_path, 2, 1, max_length=None)
    total, tokens = 0.0, 0
    for row in alone.train_dataset:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1].double()
        kept = labels[0, 1:] != -100
        total -= logits.log_softmax(-1)[kept].gather(1, labels[0, 1:][kept, None]).sum()
        tokens += int(kept.sum())
    packed = worker.sft_trainer(model, folder, few, tmp_path, 99, 1, max_length=256, packing=True)
    rows = list(packed.train_dataset)
    assert max(len(row["seq_lengths"]) for row in rows) > 1
    batch = packed._prepare_inputs(packed.data_collator(rows))
    with torch.no_grad():
        found = packed.compute_loss(model, batch)
    assert float(found) == pytest.approx(float(total / tokens), abs=1e-4)


def test_dpo_takes_the_whole_answers_and_their_ends(folder, tokenizer, data, tmp_path):
    few = data.select(range(8))
    trainer = worker.dpo_trainer(worker.adapted(folder), folder, few, tmp_path, 4, 1)
    by_question = {tuple(prompt_ids(tokenizer, row["question"])): row for row in few}
    assert len(trainer.train_dataset) == len(by_question) == 8
    for row in trainer.train_dataset:
        pair = by_question[tuple(row["prompt_ids"])]
        for side in ("chosen", "rejected"):
            answer = answer_ids(tokenizer, pair[side])
            assert row[f"{side}_ids"][: len(answer)] == answer
            assert tokenizer.decode(row[f"{side}_ids"][len(answer) :]).strip() == ""


def test_no_row_that_fits_is_dropped_or_emptied_by_trl(folder, tokenizer, data, tmp_path, capsys):
    long = {"question": "Hãy kể lại thật dài. " * 60, "chosen": "Vâng.", "rejected": "Không."}
    wordy = {"question": "Kể đi.", "chosen": "Ngày xưa có một người. " * 60, "rejected": "Không."}
    few = worker.Dataset.from_list(
        [long, wordy] + [{k: row[k] for k in long} for row in data.select(range(9))]
    )
    kept = fitting(few, tokenizer, 192, 4)
    printed = capsys.readouterr().out
    assert printed == "2 of 11 rows are longer than 192 tokens: left out.\n"
    assert len(kept) == 9 and not {long["question"], wordy["question"]} & set(kept["question"])
    trainer = worker.dpo_trainer(worker.adapted(folder), folder, kept, tmp_path, 5, 1)
    assert len(trainer.train_dataset) == len(kept)
    for batch in trainer.get_train_dataloader():
        assert batch["input_ids"].shape[1] <= 192
        assert (batch["completion_mask"].sum(1) > 0).all()
        assert (batch["completion_mask"] <= batch["attention_mask"]).all()


def test_rows_of_like_length_stand_together_and_batches_in_any_order(tokenizer, data):
    def longest(pair):
        answers = [len(answer_ids(tokenizer, pair[side])) for side in ("chosen", "rejected")]
        return len(prompt_ids(tokenizer, pair["question"])) + max(answers)

    def padded_sizes(rows):
        lengths = [longest(row) for row in rows]
        return [max(lengths[i : i + 4]) * len(lengths[i : i + 4]) for i in range(0, len(rows), 4)]

    mixed = data.shuffle(seed=1).select(range(46))  # not a multiple of the batch
    ordered, again = (fitting(mixed, tokenizer, 512, 4, seed=2) for _ in range(2))
    other = fitting(mixed, tokenizer, 512, 4, seed=3)
    assert sorted(ordered["question"]) == sorted(mixed["question"]) == sorted(other["question"])
    assert ordered["question"] == again["question"] != other["question"]
    best = sum(padded_sizes(sorted(mixed, key=longest)))
    assert best <= sum(padded_sizes(ordered)) <= 1.02 * best < sum(padded_sizes(mixed))
    assert padded_sizes(ordered) != sorted(padded_sizes(ordered))


# --- Log-probabilities ---------------------------------------------------------------------------


def one_by_one(model, tokenizer, questions, answers):
    """The same in double precision, one row at a time."""
    exact, found = copy.deepcopy(model).double(), []
    for question, answer in zip(questions, answers, strict=True):
        ids = answer_ids(tokenizer, answer) if isinstance(answer, str) else answer
        prompt = prompt_ids(tokenizer, question)
        with torch.no_grad():
            logits = exact(input_ids=torch.tensor([prompt + ids])).logits[0]
        logps = logits.log_softmax(-1)
        found.append(sum(logps[len(prompt) - 1 + i, token] for i, token in enumerate(ids)))
    return torch.stack(found)


def test_log_probabilities_are_those_of_a_loop_in_double_precision(plain, tokenizer, data):
    few = data.select(range(0, 40, 4))
    found, tokens = answer_logps(plain, tokenizer, few["question"], few["chosen"], batch_tokens=240)
    wanted = one_by_one(plain, tokenizer, few["question"], few["chosen"])
    torch.testing.assert_close(found.double(), wanted, atol=1e-3, rtol=1e-6)
    assert tokens.tolist() == [len(answer_ids(tokenizer, answer)) for answer in few["chosen"]]


def test_neither_padding_nor_the_order_of_rows_changes_them(plain, tokenizer, data):
    few = data.select(range(0, 36, 3))
    wanted, _ = answer_logps(plain, tokenizer, few["question"], few["chosen"], batch_tokens=1)
    order = torch.randperm(len(few), generator=torch.Generator().manual_seed(0)).tolist()
    mixed = few.select(order)
    found, _ = answer_logps(plain, tokenizer, mixed["question"], mixed["chosen"], batch_tokens=300)
    torch.testing.assert_close(found, wanted[order], atol=2e-4, rtol=1e-5)


# --- Answers -------------------------------------------------------------------------------------


def greedy(model, prompt, end, limit):
    """Greedy generation, token by token without a cache."""
    ids = list(prompt)
    while len(ids) - len(prompt) < limit:
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == end:
            break
    return ids[len(prompt) :]


@pytest.fixture(scope="module")
def stopping(plain, tokenizer, data):
    """A tokenizer whose end-of-turn token the model generates early for some questions; a limit.

    The model is untrained, so a token that it happens to generate is used as the end-of-turn token.
    """
    written = [greedy(plain, prompt_ids(tokenizer, q), -1, 16) for q in data["question"][:8]]
    firsts = {
        token: [ids.index(token) if token in ids else 16 for ids in written]
        for ids in written
        for token in ids
        if tokenizer.decode([token]).strip()
    }
    end = max(firsts, key=lambda token: max(firsts[token]) - min(firsts[token]))
    changed = copy.deepcopy(tokenizer)
    changed.eos_token = tokenizer.convert_ids_to_tokens(end)
    return changed, max(firsts[end])


@pytest.mark.parametrize("batch_tokens", [1, 300])
def test_greedy_answers_are_those_of_a_loop(plain, stopping, data, batch_tokens):
    (stop, limit), questions = stopping, data["question"][:8]
    found = reply(plain, stop, questions, max_new_tokens=limit, batch_tokens=batch_tokens)
    for question, answer in zip(questions, found, strict=True):
        ids = greedy(plain, prompt_ids(stop, question), stop.eos_token_id, limit)
        assert (answer.ended, answer.tokens) == (ids[-1] == stop.eos_token_id, len(ids))
        kept = ids[:-1] if answer.ended else ids
        assert answer.text == stop.decode(kept, skip_special_tokens=True).strip()
    assert {answer.ended for answer in found} == {True, False}
    assert all(answer.tokens == limit for answer in found if not answer.ended)


def test_a_repetition_penalty_of_the_hub_changes_no_answer(
    plain, folder, tokenizer, data, tmp_path
):
    """Qwen2.5's generation_config.json sets it; the answers are to be those of the policy."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "generation_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(settings | {"repetition_penalty": 1.05}), encoding="utf-8")
    penalised, _ = models.chat_model(str(tmp_path), worker.LAB, quantised=False)
    assert penalised.generation_config.repetition_penalty == 1.05
    penalised.load_state_dict(plain.state_dict())
    for temperature in (0.0, 1.0):
        found, wanted = (
            reply(
                model, tokenizer, data["question"][:8], max_new_tokens=16, temperature=temperature
            )
            for model in (penalised, plain)
        )
        assert found == wanted


def test_sampling_obeys_its_seed_and_leaves_the_others_alone(plain, tokenizer, data):
    def sampled(seed):
        some = data["question"][:4]
        found = reply(plain, tokenizer, some, max_new_tokens=8, temperature=1.0, seed=seed)
        return [answer.text for answer in found]

    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    assert sampled(0) == sampled(0) != sampled(1)
    assert torch.equal(torch.rand(1), wanted)


# --- KL ------------------------------------------------------------------------------------------


def with_reference(folder, seed):
    model = worker.shaken(worker.adapted(folder))
    model.add_adapter("reference", model.peft_config["default"])
    for name, parameter in model.named_parameters():
        if ".reference." in name:
            parameter.data = model.get_parameter(name.replace("reference", "default")).data.clone()
            if seed is not None and "lora_B" in name:
                parameter.data += 0.02 * torch.randn_like(parameter)
    return model


def test_the_kl_of_a_policy_to_itself_is_0(folder, tokenizer, data):
    model = with_reference(folder, None)
    found = sampled_kl(model, tokenizer, data["question"][:6], max_new_tokens=8)
    assert torch.equal(found, torch.zeros(6))


def test_the_kl_is_what_the_policy_gives_its_own_answers_more(folder, tokenizer, data):
    torch.manual_seed(0)
    model, questions = with_reference(folder, 0), data["question"][:6]
    model.set_adapter("default")
    found = sampled_kl(model, tokenizer, questions, max_new_tokens=8, seed=3)
    assert model.active_adapter == "default"
    replies = reply(model, tokenizer, questions, max_new_tokens=8, temperature=1.0, seed=3)
    answers = [each.ids for each in replies]
    ours = one_by_one(model, tokenizer, questions, answers)
    model.set_adapter("reference")
    theirs = one_by_one(model, tokenizer, questions, answers)
    torch.testing.assert_close(found.double(), ours - theirs, atol=1e-3, rtol=1e-4)
    assert found.abs().min() > 1e-4


def test_speaking_as_another_ends_with_the_block_even_when_it_fails(folder):
    model = with_reference(folder, 0)
    model.set_adapter("default")
    with pytest.raises(RuntimeError), models.speaking_as(model, "reference"):
        assert model.active_adapter == "reference"
        raise RuntimeError
    assert model.active_adapter == "default"
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert trained and all(".default." in n for n in trained)


def test_template_arguments_reach_every_row(data):
    few = data.select(range(3))
    for made in (sft_rows(few), preference_rows(few)):
        assert made["chat_template_kwargs"] == [TEMPLATE] * 3
