import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from utils.course.profiles import TABLE
from utils.finetune.training import _SimilarLengths, adapt_language_model
from utils.judge import frontier as frontier_module
from utils.judge.frontier import Frontier, GroupRun, _with_positions, train_group_method
from utils.judge.metrics import perplexity
from utils.models.language import language_model
from utils.ppo.policy import ActorCritic

LAB = TABLE["lab"]


@pytest.fixture(scope="module")
def adapted(texts, tmp_path_factory):
    settings = replace(LAB.policy, adapt_epochs=12)
    model, tokenizer = language_model(settings, texts, "cpu")
    before = perplexity(model, tokenizer, texts)
    folder = str(tmp_path_factory.mktemp("adapting"))
    adapt_language_model(model, tokenizer, texts, texts[:6], settings, LAB, folder, seed=0)
    return model, tokenizer, before


def test_adapting_learns_the_texts_and_their_end(adapted, texts):
    model, tokenizer, before = adapted
    assert perplexity(model, tokenizer, texts) < before / 20
    text = texts[0]
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.no_grad():
        following = model(ids).logits[0, -1].argmax()
    assert following == tokenizer.eos_token_id  # padding, the same token, has no label


def test_left_padding_changes_nothing_once_positions_are_given(adapted, texts):
    model, tokenizer, _ = adapted
    ids = torch.tensor([tokenizer(texts[0])["input_ids"]])
    padded = torch.cat([torch.full((1, 3), tokenizer.eos_token_id), ids], 1)
    mask = torch.cat([torch.zeros(1, 3), torch.ones_like(ids)], 1).long()
    hook = model.register_forward_pre_hook(_with_positions, with_kwargs=True)
    with torch.no_grad():
        alone = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        shifted = model(input_ids=padded, attention_mask=mask).logits[:, 3:]
        hook.remove()
        wrong = model(input_ids=padded, attention_mask=mask).logits[:, 3:]
    torch.testing.assert_close(alone, shifted, atol=1e-4, rtol=1e-4)
    assert (alone - wrong).abs().max() > 1e-2  # the error that the hook prevents


def test_parts_of_similar_length_have_the_gradient_of_the_batch(texts, tmp_path, monkeypatch):
    settings = replace(LAB.policy, adapt_epochs=1)

    def trained(rows):
        monkeypatch.setattr(_SimilarLengths, "ROWS", rows)
        model, tokenizer = language_model(settings, texts, "cpu")
        for module in model.modules():  # dropout draws one number per token, padding included
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if hasattr(module, "attn_dropout"):
                module.attn_dropout.p = 0.0
        passes = []
        model.register_forward_hook(lambda *_: passes.append(model.training))
        given = (settings, LAB, str(tmp_path / str(rows)), 0)
        adapting = adapt_language_model(model, tokenizer, texts, texts[:6], *given)
        whole = [entry for entry in adapting.state.log_history if "loss" in entry]
        return model, sum(passes), whole[0]

    (one, few, first), (parted, many, second) = trained(10**6), trained(5)
    assert many > 3 * few
    for key in ("loss", "grad_norm"):
        assert first[key] == pytest.approx(second[key], rel=1e-4)
    for left, right in zip(one.parameters(), parted.parameters(), strict=True):
        torch.testing.assert_close(left, right, atol=1e-4, rtol=1e-3)


def test_a_tokenizer_that_pads_on_the_left_loses_no_text(texts, tmp_path, monkeypatch):
    """The parts of a batch are its first columns, which must not be the padding."""
    settings, losses = replace(LAB.policy, adapt_epochs=1), []
    for side in ("right", "left"):
        model, tokenizer = language_model(settings, texts, "cpu")
        folder = tmp_path / side
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        path = folder / "tokenizer_config.json"
        named = json.loads(path.read_text(encoding="utf-8")) | {"padding_side": side}
        path.write_text(json.dumps(named), encoding="utf-8")
        monkeypatch.setenv("COURSE_POLICY", str(folder))
        torch.manual_seed(0)
        model, tokenizer = language_model(settings, texts, "cpu")
        monkeypatch.delenv("COURSE_POLICY")
        given = (settings, LAB, str(tmp_path / f"{side} run"), 0)
        adapting = adapt_language_model(model, tokenizer, texts, texts[:6], *given)
        losses.append([e["loss"] for e in adapting.state.log_history if "loss" in e])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


class Judge:
    """A judge that classifies every text as negative."""

    def predict(self, found):
        return np.zeros(len(found))


def lengths(found):
    return [float(len(text)) for text in found]


def group_run(method, model, tokenizer, prompts, run, folder) -> Frontier:
    """Train a copy of the model with TRL's method; the reward of a text is its length."""
    models = ActorCritic(copy.deepcopy(model), tokenizer, max_new_tokens=6)
    frontier = Frontier(Judge(), lengths, prompts, beta=0.1)
    train_group_method(method, models, lengths, prompts, run, LAB, str(folder), frontier)
    return frontier


@pytest.mark.parametrize("method", ["RLOO", "GRPO"])
def test_group_methods_measure_against_the_adapted_policy(adapted, method, tmp_path, monkeypatch):
    """TRL loads the reference itself: it must be the adapted policy, not the untrained one."""
    model, tokenizer, _ = adapted
    sizes = {"batch_size": 16, "minibatch_size": 8, "generations": 4}
    run = GroupRun(steps=2, learning_rate=0.0, **sizes)
    prompts = ["giảng viên", "thầy dạy", "phòng thực hành"] * 10
    called = {}

    def record(called_model, args, keywords):
        called[id(called_model)] = called_model
        return _with_positions(called_model, args, keywords)

    monkeypatch.setattr(frontier_module, "_with_positions", record)

    frontier = group_run(method, model, tokenizer, prompts, run, tmp_path)
    assert len(called) == 2  # policy and reference
    wanted = model.state_dict()
    for each in called.values():
        found = each.state_dict()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert frontier.last(method).kl == pytest.approx(0.0, abs=1e-5)
    assert frontier.last(method).objective > 0


@pytest.mark.parametrize("method", ["RLOO", "GRPO"])
def test_group_methods_train_on_fewer_prompts_than_a_step_takes(adapted, method, tmp_path):
    """TRL skips a step that has too few prompts, so with few prompts it would not train at all."""
    model, tokenizer, _ = adapted
    sizes = {"batch_size": 32, "minibatch_size": 16, "generations": 4}  # 8 prompts per batch
    run = GroupRun(steps=2, learning_rate=LAB.ppo.learning_rate, **sizes)
    prompts = ["giảng viên", "thầy dạy", "phòng thực hành"]

    frontier = group_run(method, model, tokenizer, prompts, run, tmp_path)
    assert [point.step for point in frontier.points] == [1, 2]
