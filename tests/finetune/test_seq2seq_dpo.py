import doctest
import math
from functools import partial

import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import (
    AutoTokenizer,
    BertConfig,
    EarlyStoppingCallback,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
    TrainingArguments,
)

from utils.course.errors import CourseError
from utils.finetune import seq2seq_dpo, training
from utils.finetune.seq2seq_dpo import (
    COLUMNS,
    REFERENCE,
    DPOSettings,
    Seq2SeqDPOTrainer,
    answer_logps,
    collate,
    disable_dropout,
    encoder_decoder,
    padded,
    shift_right,
    tokenise,
)
from utils.finetune.training import fit
from utils.models import logprobs, standins

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
WORDS = [
    "giảng viên",
    "nhiệt tình",
    "máy chiếu",
    "nóng",
    "thầy",
    "cô",
    "bài giảng",
    "dễ hiểu",
    "mờ",
]


@pytest.fixture(scope="module")
def tokenizer(texts):
    return AutoTokenizer.from_pretrained(standins.t5(texts))


def pairs(count: int) -> Dataset:
    """Prompts with an answer that ends in `nha` and one that ends in `ạ`, of several lengths."""
    rows = []
    for number in range(count):
        words = [WORDS[(number * step + number // 9) % 9] for step in range(1, 2 + number % 4)]
        prompt = f"{words[0]} thế nào {number}"
        rows.append({"prompt": prompt, "chosen": " ".join([*words, "nha"])})
        rows[-1]["rejected"] = " ".join([*words[:2], "ạ"])
    return Dataset.from_list(rows)


def tiny(tokenizer, seed: int = 0, dropout: float = 0.1) -> T5ForConditionalGeneration:
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4
    )
    config.decoder_start_token_id, config.dropout_rate = 0, dropout
    return T5ForConditionalGeneration(config)


def arguments(folder, **changes) -> TrainingArguments:
    standard = {
        "per_device_train_batch_size": 8,
        "learning_rate": 3e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return TrainingArguments(output_dir=str(folder), **{**standard, **changes})


def trainer_of(tokenizer, folder, model=None, data=None, settings=None, **changes):
    data = data or pairs(16)
    model = model or tiny(tokenizer)
    options = {"eval_dataset": data, "processing_class": tokenizer, "settings": settings}
    return Seq2SeqDPOTrainer(model, arguments(folder, **changes), data, **options)


def a_batch(trainer, count: int = 8) -> dict[str, torch.Tensor]:
    return trainer.data_collator(trainer.train_dataset.select(range(count)).to_list())


def shake(model: nn.Module, seed: int = 1) -> None:
    """Move every weight a little, so that the policy is no longer the reference."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.05 * torch.randn_like(weight)


# --- Tokens and masks ----------------------------------------------------------------------------


def test_every_answer_ends_and_none_is_emptied(tokenizer):
    settings = DPOSettings(max_prompt_length=3, max_answer_length=4)
    rows = tokenise(pairs(8), tokenizer, settings)
    assert rows.column_names == COLUMNS
    for row in rows:
        assert 2 <= len(row["prompt_ids"]) <= 3
        for side in ("chosen_ids", "rejected_ids"):
            assert 2 <= len(row[side]) <= 4
            assert row[side][-1] == tokenizer.eos_token_id
            assert tokenizer.eos_token_id not in row[side][:-1]
    with pytest.raises(ValueError, match="At most 1 token"):
        tokenise(pairs(8), tokenizer, DPOSettings(max_answer_length=1))


def test_a_tokenizer_that_adds_no_end_gets_one(texts):
    gpt2 = AutoTokenizer.from_pretrained(standins.gpt2(texts))
    for limit in (4, 128):
        row = tokenise(pairs(1), gpt2, DPOSettings(max_answer_length=limit))[0]
        assert row["chosen_ids"][-1] == gpt2.eos_token_id and len(row["chosen_ids"]) <= limit


def test_the_mask_is_made_of_lengths_not_of_tokens():
    tokens, mask = padded([[7, 0, 0, 1], [0, 1]], filler=0)
    assert tokens.tolist() == [[7, 0, 0, 1], [0, 1, 0, 0]]
    assert mask.tolist() == [[True] * 4, [True, True, False, False]]


def test_shift_right_is_t5s_own(tokenizer):
    labels = torch.tensor([[5, 0, 6, 1], [7, 1, 0, 0]])
    expected = tiny(tokenizer).prepare_decoder_input_ids_from_labels(labels)
    assert torch.equal(shift_right(labels, start=0), expected)


def test_the_examples_in_the_docstrings():
    found = doctest.testmod(logprobs, extraglobs={"torch": torch})
    assert found.attempted >= 2 and found.failed == 0


# --- Log-probabilities ---------------------------------------------------------------------------


def by_hand(model, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """Log-probability of one answer, token by token, without padding or mask."""
    total, read = 0.0, [model.config.decoder_start_token_id]
    for token in answer:
        logits = model(
            input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([read])
        ).logits[0, -1]
        total = total + logits[token] - logits.logsumexp(0)
        read.append(token)
    return total


def test_logps_and_gradient_equal_a_loop_in_float64(tokenizer):
    model = tiny(tokenizer).double().eval()
    rows = tokenise(pairs(4), tokenizer, DPOSettings()).to_list()
    ours = torch.cat(answer_logps(model, collate(rows, filler=0)))
    weights = torch.linspace(-1, 1, len(ours))
    (ours * weights).sum().backward()
    gradients = [weight.grad.clone() for weight in model.parameters()]
    model.zero_grad()
    loop = [by_hand(model, r["prompt_ids"], r[s]) for s in COLUMNS[1:] for r in rows]
    (torch.stack(loop) * weights).sum().backward()
    torch.testing.assert_close(ours.double(), torch.stack(loop), **CLOSE)
    for ours, weight in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(ours, weight.grad, **CLOSE)


def test_padding_changes_no_number(tokenizer):
    model = tiny(tokenizer).eval()
    rows = tokenise(pairs(8), tokenizer, DPOSettings()).to_list()
    alone = [answer_logps(model, collate([row], filler=0)) for row in rows]
    for filler in (0, 1, 9):
        chosen, rejected = answer_logps(model, collate(rows, filler))
        torch.testing.assert_close(chosen, torch.cat([c for c, _ in alone]), **CLOSE)
        torch.testing.assert_close(rejected, torch.cat([r for _, r in alone]), **CLOSE)


def test_the_encoder_reads_each_prompt_once(tokenizer):
    model, seen = tiny(tokenizer).eval(), []
    model.get_encoder().register_forward_hook(
        lambda _, __, states: seen.append(states.last_hidden_state.shape[0])
    )
    answer_logps(model, collate(tokenise(pairs(5), tokenizer, DPOSettings()).to_list(), 0))
    assert seen == [5]


def test_t5s_attention_keeps_its_dropout_as_a_number(tokenizer):
    batch = collate(tokenise(pairs(4), tokenizer, DPOSettings()).to_list(), 0)
    differs = []
    for repair in (lambda model: None, only_modules, disable_dropout):
        model = tiny(tokenizer, dropout=0.3).train()
        repair(model)
        first, again = answer_logps(model, batch)[0], answer_logps(model, batch)[0]
        differs.append(not torch.equal(first, again))
    assert differs == [True, True, False]


def only_modules(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


# --- The loss ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "start"),
    [("sigmoid", math.log(2)), ("robust", math.log(2)), ("hinge", 1), ("ipo", 25)],
)
def test_the_first_loss(tokenizer, tmp_path, variant, start):
    settings = DPOSettings(variant=variant, label_smoothing=0.1 * (variant == "robust"))
    trainer = trainer_of(tokenizer, tmp_path, tiny(tokenizer, dropout=0.3), settings=settings)
    assert set(REFERENCE) <= set(trainer.train_dataset.column_names)
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, a_batch(trainer))
    assert loss.item() == pytest.approx(start, rel=1e-6)


def test_the_logged_first_loss_and_names_are_trls(tokenizer, tmp_path):
    trainer = trainer_of(tokenizer, tmp_path, max_steps=3, eval_strategy="steps", eval_steps=3)
    trainer.train()
    first, *_ = trainer.state.log_history
    names = {"rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"}
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert names <= set(first) and first["rewards/margins"] == pytest.approx(0, abs=1e-5)
    held_out = next(row for row in trainer.state.log_history if "eval_loss" in row)
    assert {f"eval_{name}" for name in names} <= set(held_out)
    assert names.isdisjoint(held_out)


def test_evaluation_is_the_mean_over_rows(tokenizer, tmp_path):
    trainer = trainer_of(tokenizer, tmp_path, data=pairs(7), per_device_eval_batch_size=3)
    shake(trainer.model)
    scores = trainer.evaluate()
    trainer.model.eval()
    one_by_one = [
        trainer.compute_loss(trainer.model, trainer.data_collator([row])).item()
        for row in trainer.eval_dataset.to_list()
    ]
    assert scores["eval_loss"] == pytest.approx(sum(one_by_one) / 7, rel=1e-4)
    batch = a_batch(trainer, 7)
    reference = torch.stack([batch[column] for column in REFERENCE])
    chosen, rejected = 0.1 * (torch.stack(answer_logps(trainer.model, batch)) - reference)
    assert scores["eval_rewards/chosen"] == pytest.approx(chosen.mean().item(), rel=1e-4)
    assert scores["eval_rewards/margins"] == pytest.approx(
        (chosen - rejected).mean().item(), rel=1e-4
    )
    right = (chosen > rejected).float().mean().item()
    assert scores["eval_rewards/accuracies"] == pytest.approx(right)


def test_where_memory_is_short_the_reference_and_an_evaluation_take_smaller_batches(
    tokenizer, tmp_path, monkeypatch
):
    exact, room = seq2seq_dpo.answer_logps, [10**6]

    def answer_logps_in_room(model, batch):
        if len(batch["prompts"]) > room[0]:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        room[0] = room[-1]
        return exact(model, batch)

    monkeypatch.setattr(seq2seq_dpo, "answer_logps", answer_logps_in_room)
    seen = []
    for rows in (10**6, 2):
        room[:] = [rows]
        trainer = trainer_of(tokenizer, tmp_path, data=pairs(7), per_device_eval_batch_size=4)
        training._apart(trainer)
        shake(trainer.model)
        reference = [trainer.train_dataset[name][:] for name in REFERENCE]
        room[:] = [10**6, rows]  # the second batch does not fit, when the first one is counted
        seen.append((reference, trainer.evaluate()))
    (whole, scores), (halved, again) = seen
    for left, right in zip(whole, halved, strict=True):
        assert right == pytest.approx(left, rel=1e-5)
    assert trainer.args.per_device_eval_batch_size == 2
    for name in scores:
        if "rewards" in name or name == "eval_loss":
            assert again[name] == pytest.approx(scores[name], rel=1e-4), name


def test_one_of_several_processes_does_not_halve_its_evaluation(tokenizer, tmp_path, monkeypatch):
    """The others would wait for its batches, or gather rows of other batches."""
    trainer = trainer_of(tokenizer, tmp_path, data=pairs(7), per_device_eval_batch_size=4)

    def no_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(TrainingArguments, "world_size", property(lambda self: 2))
    monkeypatch.setattr(trainer, "evaluate", no_memory)
    training._apart(trainer)
    with pytest.raises(CourseError, match=r"^An evaluation with 4 rows .* per_device_eval_batch"):
        trainer.evaluate()
    assert trainer.args.per_device_eval_batch_size == 4


# --- Parity with the decoder-only loss -----------------------------------------------------------


@pytest.fixture(scope="module")
def twins(texts):
    """A GPT-2, and an encoder-decoder whose outputs equal those of the GPT-2.

    Its decoder is that GPT-2 with cross-attention whose output is zero, so the encoder has no
    effect. The decoder's start token is the whole prompt of the GPT-2.
    """
    torch.manual_seed(3)
    tokenizer = AutoTokenizer.from_pretrained(standins.gpt2(texts))
    tokenizer.pad_token = tokenizer.eos_token
    shape = {"vocab_size": len(tokenizer), "n_embd": 32, "n_layer": 2, "n_head": 4}
    alone = GPT2LMHeadModel(GPT2Config(**shape, n_positions=64))
    decoder = GPT2Config(**shape, n_positions=64, add_cross_attention=True, is_decoder=True)
    encoder = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    config = EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id = config.pad_token_id = tokenizer.eos_token_id
    both = EncoderDecoderModel(config)
    missing, unexpected = both.decoder.load_state_dict(alone.state_dict(), strict=False)
    assert not unexpected and all("cross" in name for name in missing)
    for block in both.decoder.transformer.h:
        nn.init.zeros_(block.crossattention.c_proj.weight)
        nn.init.zeros_(block.crossattention.c_proj.bias)
    return alone, both, tokenizer


@pytest.mark.parametrize("variant", ["sigmoid", "ipo", "hinge", "robust"])
def test_loss_rewards_and_gradient_equal_trls(twins, tmp_path, variant):
    from copy import deepcopy

    from trl import DPOConfig, DPOTrainer

    alone, both, tokenizer = (deepcopy(twins[0]), deepcopy(twins[1]), twins[2])
    smoothing = 0.2 if variant == "robust" else 0.0
    data = pairs(8)
    start = tokenizer.eos_token
    options = {"per_device_train_batch_size": 8, "report_to": "none", "use_cpu": True}
    theirs = DPOTrainer(
        alone,
        args=DPOConfig(
            str(tmp_path / "trl"),
            loss_type=variant,
            label_smoothing=smoothing,
            beta=0.3,
            bf16=False,
            gradient_checkpointing=False,
            precompute_ref_log_probs=True,
            disable_tqdm=True,
            **options,
        ),
        train_dataset=data.map(lambda row: {"prompt": start}),
        processing_class=tokenizer,
    )
    settings = DPOSettings(beta=0.3, variant=variant, label_smoothing=smoothing)
    ours = trainer_of(tokenizer, tmp_path / "ours", both, data, settings)
    shake(alone)
    both.decoder.load_state_dict(alone.state_dict(), strict=False)
    rows = theirs.train_dataset.select_columns(
        ["prompt_ids", "chosen_ids", "rejected_ids", "ref_chosen_logps", "ref_rejected_logps"]
    )
    alone.train(), both.train()
    their_loss = theirs.compute_loss(alone, theirs.data_collator(rows.to_list()))
    our_loss = ours.compute_loss(both, a_batch(ours))
    torch.testing.assert_close(our_loss, their_loss, **CLOSE)
    their_loss.backward()
    our_loss.backward()
    gradients = dict(both.decoder.named_parameters())
    assert max(weight.grad.abs().max() for weight in alone.parameters()) > 1e-3
    for name, weight in alone.named_parameters():
        torch.testing.assert_close(gradients[name].grad, weight.grad, **CLOSE)
    for name in ("chosen", "rejected", "margins", "accuracies"):
        found = torch.cat(ours.noted[f"rewards/{name}"]).mean().item()
        expected = theirs._metrics["train"][f"rewards/{name}"][0]
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-5), name


# --- Training ------------------------------------------------------------------------------------


def test_forty_pairs_are_learned(tokenizer, tmp_path):
    trainer = trainer_of(tokenizer, tmp_path, data=pairs(40), max_steps=25)
    before = trainer.evaluate()
    assert before["eval_rewards/accuracies"] < 0.5  # equal rewards do not count as right
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_rewards/accuracies"] >= 0.95
    assert after["eval_loss"] < 0.3 < before["eval_loss"]


def lora(model):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(5)
    config = LoraConfig(r=4, target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM", lora_dropout=0.1)
    return get_peft_model(model, config)


@pytest.mark.parametrize("adapter", [False, True])
def test_a_resumed_run_ends_in_the_same_weights(tokenizer, tmp_path, adapter):
    def run(folder, **changes):
        model = lora(tiny(tokenizer)) if adapter else tiny(tokenizer)
        options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, **changes}
        return trainer_of(tokenizer, folder, model, **options)

    whole = run(tmp_path / "whole")
    whole.train()
    again = run(tmp_path / "again")
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert again.state.global_step == 6
    trained = [name for name, weight in whole.model.named_parameters() if weight.requires_grad]
    ours, theirs = whole.model.state_dict(), again.model.state_dict()
    assert trained and all(torch.equal(ours[name], theirs[name]) for name in trained)
    saved = "adapter_model.safetensors" if adapter else "model.safetensors"
    assert (tmp_path / "whole" / "checkpoint-6" / saved).exists()


def test_a_run_that_stopped_early_is_loaded_with_its_best_weights(tokenizer, tmp_path, capsys):
    """The settings of notebook 08; the loss of the watched pairs can only rise."""
    rows = pairs(16)
    watched = rows.rename_columns({"chosen": "rejected", "rejected": "chosen"})
    steps = dict.fromkeys(("eval_strategy", "save_strategy"), "steps")
    steps |= dict.fromkeys(("eval_steps", "save_steps"), 0.1)
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss"}
    best |= {"greater_is_better": False, "restore_callback_states_from_checkpoint": True}

    def build(batch_size, accumulation):
        made = arguments(tmp_path, num_train_epochs=5, save_total_limit=1, **steps, **best)
        stop = [EarlyStoppingCallback(early_stopping_patience=2)]
        return Seq2SeqDPOTrainer(tiny(tokenizer), made, rows, watched, tokenizer, callbacks=stop)

    trained, loaded = fit(build, 8, 1), fit(build, 8, 1)
    assert "this training is already complete" in capsys.readouterr().out
    losses = [row["eval_loss"] for row in trained.state.log_history if "eval_loss" in row]
    assert len(losses) == 3 and losses == sorted(losses)  # of ten planned evaluations
    assert trained.evaluate()["eval_loss"] == pytest.approx(losses[0], abs=1e-5)
    ours, theirs = trained.model.state_dict(), loaded.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    again = [row["eval_loss"] for row in loaded.state.log_history if "eval_loss" in row]
    assert again == losses


def test_lora_trains_the_adapter_alone_against_the_base(tokenizer, tmp_path):
    base = tiny(tokenizer)
    plain = trainer_of(tokenizer, tmp_path, tiny(tokenizer))
    weights = {name: weight.clone() for name, weight in base.state_dict().items()}
    trainer = trainer_of(tokenizer, tmp_path, lora(base), max_steps=4, learning_rate=3e-2)
    for column in REFERENCE:
        ours, expected = trainer.train_dataset[column][:], plain.train_dataset[column][:]
        torch.testing.assert_close(torch.tensor(ours), torch.tensor(expected), **CLOSE)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert trainer.evaluate()["eval_loss"] < 0.69
    with trainer.model.disable_adapter():
        left = {k.replace(".base_layer", ""): v for k, v in base.state_dict().items()}
        assert all(torch.equal(weights[name], left[name]) for name in weights)


def test_accumulated_gradients_are_the_large_batchs(tokenizer, tmp_path):
    losses = []
    for size, steps in ((8, 1), (2, 4)):
        trainer = trainer_of(
            tokenizer,
            tmp_path,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            max_steps=3,
            max_grad_norm=0.0,
            optim="sgd",
            learning_rate=0.1,
        )
        trainer.train()
        losses.append(trainer.state.log_history[2]["loss"])
        weights = torch.cat([weight.flatten() for weight in trainer.model.parameters()])
        losses.append(weights)
    assert losses[0] == pytest.approx(losses[2], abs=2e-4)
    torch.testing.assert_close(losses[1], losses[3], rtol=1e-4, atol=1e-5)


def test_several_devices_are_refused_with_a_way_out(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 2))
    with pytest.raises(ValueError, match="CUDA_VISIBLE_DEVICES=0"):
        trainer_of(tokenizer, tmp_path)


def test_the_loader_builds_the_stand_in_and_reads_a_folder(texts, tmp_path):
    model, tokenizer = encoder_decoder("stand-in", texts, "cpu")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again, reread = encoder_decoder(str(tmp_path), [], "cpu")
    batch = partial(collate, filler=0)(tokenise(pairs(2), reread, DPOSettings()).to_list())
    assert torch.equal(answer_logps(model.eval(), batch)[0], answer_logps(again.eval(), batch)[0])
