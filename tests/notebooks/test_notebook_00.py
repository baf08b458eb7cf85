"""The losses that notebook 00 writes are those of `utils.losses`; its checks can fail."""

import json
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from utils import losses
from utils.course.notebooks import path_of

TRAINED = re.compile(r"\btrained\b|\bbroken\b|\bmisread\b|\blog, f|hand_over|utils.course import")


def code_cells() -> list[dict]:
    cells = json.loads(path_of("00").read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def sources() -> list[str]:
    return ["".join(cell["source"]) for cell in code_cells()]


def look_alikes(found, library, inputs, mistakes):
    """Each named mistake, with the names of all losses close to it, including the right loss."""
    known = {"right": library, **mistakes}
    for name, loss in mistakes.items():
        apart = {k: max(found["distances"](loss, other, inputs)) for k, other in known.items()}
        yield name, [k for k, distance in apart.items() if distance < found["TOLERANCE"]]


@pytest.fixture(scope="module")
def lesson(tmp_path_factory):
    """What the notebook's cells define, without its trainings; every `catch` is noted."""
    import matplotlib.pyplot as plt

    plt.switch_backend("agg")
    profile = SimpleNamespace(offline=True, name="lab")
    folder = str(tmp_path_factory.mktemp("checkpoints"))
    found = {"course": SimpleNamespace(profile=profile, seed=20, checkpoints=folder), "caught": []}
    for source in sources():
        if TRAINED.search(source):
            continue
        exec(compile(source, "notebook 00", "exec"), found)
        if "def catch(" in source:
            catch = found["catch"]

            def noted(attempt, library, inputs, mistakes, catch=catch):
                catch(attempt, library, inputs, mistakes)
                # now, because later cells redefine names that these functions use
                found["caught"] += look_alikes(found, library, inputs, mistakes)

            found["catch"] = noted
    plt.close("all")
    return found


def same_in_value_and_gradient(one, other, *inputs):
    inputs = [x.clone().requires_grad_() for x in inputs]
    values = [loss(*inputs) for loss in (one, other)]
    assert_close(*values, atol=1e-5, rtol=1e-5)
    slopes = [torch.autograd.grad(value.sum(), inputs) for value in values]
    for mine, packaged in zip(*slopes, strict=True):
        assert_close(mine, packaged, atol=1e-5, rtol=1e-5)


@pytest.fixture
def numbers():
    return torch.Generator().manual_seed(5)


def test_sequence_logps_are_the_packages(lesson, numbers):
    tokens = torch.randint(11, (3, 7), generator=numbers)
    mask = torch.rand(3, 7, generator=numbers) > 0.4
    same_in_value_and_gradient(
        lambda z: lesson["sequence_logps"](z, tokens, mask),
        lambda z: losses.sequence_logps(z, tokens, mask),
        torch.randn(3, 7, 11, generator=numbers),
    )


@pytest.mark.parametrize("name", ["bradley_terry_loss", "margin_loss"])
def test_the_losses_of_a_reward_model_are_the_packages(lesson, numbers, name):
    pair = 3 * torch.randn(2, 50, generator=numbers)
    same_in_value_and_gradient(lesson[name], getattr(losses, name), *pair)


def test_bradley_terry_survives_what_the_naive_form_does_not(lesson):
    worst = torch.tensor([-200.0], requires_grad=True)
    loss = lesson["bradley_terry_loss"](worst, torch.zeros(1))
    loss.backward()
    assert loss == 200 and worst.grad == -1


def test_the_clip_is_the_packages(lesson, numbers):
    old, moved, advantages = torch.randn(3, 200, generator=numbers)
    same_in_value_and_gradient(
        lambda logps: lesson["clipped_policy_loss"](logps, old, advantages),
        lambda logps: losses.clipped_policy_loss(logps, old, advantages),
        old + 0.3 * moved,
    )


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_the_estimators_of_the_kl_are_the_packages(lesson, numbers, kind):
    same_in_value_and_gradient(
        lesson[kind],
        lambda logps, reference: losses.kl_estimate(logps, reference, kind),
        *-torch.rand(2, 40, generator=numbers),
    )


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_dpo_and_orpo_are_the_packages(lesson, numbers, beta):
    logps = -9 * torch.rand(4, 20, generator=numbers)
    same_in_value_and_gradient(
        lambda *given: lesson["dpo_loss"](*given, beta=beta),
        lambda *given: losses.dpo_loss(*given, beta=beta),
        *logps,
    )
    same_in_value_and_gradient(
        lambda *given: lesson["orpo_loss"](*given, beta=beta),
        lambda *given: losses.orpo_loss(*given, beta=beta),
        *(0.1 * logps[:2] - 0.05),
        torch.tensor(1.3),
    )


def test_a_policy_gradient_is_ppos_at_ratio_one(lesson, numbers):
    logps, advantages = torch.randn(2, 12, generator=numbers)
    logps.requires_grad_()
    ours = lesson["policy_gradient_loss"](logps, advantages)
    theirs = losses.clipped_policy_loss(logps, logps.detach(), advantages).mean()
    assert_close(*(torch.autograd.grad(loss, logps)[0] for loss in (ours, theirs)))


def test_the_last_token_is_found_wherever_padding_stands(lesson, numbers):
    hidden = torch.randn(6, 9, 3, generator=numbers)
    for left in (False, True):
        lengths = [1, 4, 9, 2, 8, 5]
        attention = torch.stack([torch.arange(9) < n for n in lengths])
        attention = attention.flip(1) if left else attention
        ends = [8 if left else n - 1 for n in lengths]
        slow = torch.stack([row[end] for row, end in zip(hidden, ends, strict=True)])
        assert_close(lesson["last_token"](hidden, attention), slow)


def test_a_reward_ignores_padding_and_the_wrong_poolings_do_not(lesson):
    short, long = lesson["encode"]("cô dạy hay ."), lesson["encode"]("máy chiếu hư hoài " * 4)
    model = lesson["fresh_reward_model"]()

    def reward(rows, side="right", pool=lesson["last_token"]):
        with torch.no_grad():
            return lesson["rewards"](*model, *lesson["pad"](rows, side), pool)[0]

    alone = reward([short])
    for side in ("left", "right"):
        assert_close(reward([short, long], side), alone)
    wrong = {"right": lesson["position_minus_one"], "left": lesson["length_minus_one"]}
    for side, pool in wrong.items():
        assert (reward([short, long], side, pool) - alone).abs() > 1e-3


def test_every_equality_holds_and_compares_with_trl_four_times(lesson):
    checked = lesson["CHECKED"]
    assert all(row["value differs by"] < 1e-5 for row in checked)
    assert all(row["gradient differs by"] < 1e-5 for row in checked)
    names = [row["loss"] for row in checked]
    assert len(set(names)) == len(names) == 13
    for library in ("RewardTrainer", "GRPOTrainer", "DPOTrainer", "odds_ratio_loss"):
        assert any(f"TRL {library}" in name for name in names)


def test_every_named_mistake_is_told_from_the_right_loss_and_from_the_others(lesson):
    assert len(lesson["caught"]) > 2 * len(lesson["CAUGHT"])
    for name, near in lesson["caught"]:
        assert near == [name]


def test_each_section_catches_the_mistake_it_announces(lesson):
    caught = {row["mistake"] for row in lesson["CAUGHT"]}
    assert caught == {
        "not shifted by one",
        "margin left out",
        "averaged before the logarithm",
        "pooling at position −1 with right padding",
        "advantage not detached",
        "clip without the max",
        "k3 with the ratio inverted",
        "k3 without the ratio",
        "averaged instead of summed",
        "odds without the log1p term",
    }


def test_the_checks_can_fail(lesson):
    x = [torch.tensor([1.0, 2.0], requires_grad=True)]

    def right(x):
        return (x * x).sum()

    def wrong_gradient(x):
        return (x * x.detach()).sum()

    with pytest.raises(AssertionError, match="toy: off by 0"):
        lesson["same"](wrong_gradient, right, x, "toy")
    with pytest.raises(AssertionError, match="off by inf"):
        lesson["same"](lambda x: x * x, right, x, "toy")
    with pytest.raises(AssertionError, match="off by nan"):
        lesson["same"](lambda x: right(x) * float("nan"), right, x, "toy")
    with pytest.raises(AssertionError, match="nothing to compare"):
        lesson["same"](lambda x: 0 * right(x), lambda x: 0 * right(x), x, "toy")
    with pytest.raises(AssertionError, match="this attempt is right"):
        lesson["catch"](right, right, x, {})
    with pytest.raises(AssertionError, match="none of the known"):
        lesson["catch"](wrong_gradient, right, x, {"sign": lambda x: -right(x)})


def test_a_trl_without_orpo_is_said_and_does_not_stop(lesson, monkeypatch, capsys):
    (source,) = [source for source in sources() if "def orpo_loss" in source]
    monkeypatch.setitem(sys.modules, "trl.experimental.orpo", None)
    names = dict(lesson) | {"CHECKED": [], "CAUGHT": []}
    for name in ("same", "catch"):
        names[name] = lambda *case, name=name: print(name, case[-1] if name == "same" else "")
    exec(compile(source, "notebook 00", "exec"), names)
    printed = capsys.readouterr().out
    assert "not present in this TRL" in printed and "same ORPO · torch logit" in printed


def test_pairs_share_no_text_between_splits_and_use_each_once(lesson):
    texts = {
        split: [tuple(text) for pair in found for text in pair]
        for split, found in lesson["pairs"].items()
    }
    train = set(texts["train"])
    for split in ("validation", "test"):
        assert len(set(texts[split])) > 0.99 * len(texts[split])
        assert len(train & set(texts[split])) <= 0.01 * len(texts[split])


def test_training_on_pairs_learns_them(lesson, monkeypatch):
    few = {"train": lesson["pairs"]["train"][::16], "validation": lesson["pairs"]["train"][::16]}
    monkeypatch.setitem(lesson, "pairs", few)
    _, log = lesson["train_reward"](epochs=6)
    assert log["loss"][0] == pytest.approx(0.69, abs=0.1)
    assert log["accuracy"].dropna().iloc[-1] > 0.9


def test_the_committed_run_says_what_it_counted():
    printed = "".join(
        "".join(output.get("text", ""))
        for cell in code_cells()
        for output in cell["outputs"]
        if output["output_type"] == "stream"
    )
    assert int(re.search(r"checks_passed +(\d+)", printed).group(1)) == printed.count("equal: ")
    named = int(re.search(r"mistakes_named +(\d+)", printed).group(1))
    assert named == len(re.findall(r"^caught: .*\(value off", printed, re.MULTILINE))
    assert float(re.search(r"largest_difference +(\S+)", printed).group(1)) < 1e-5
    assert "DPO, first step (0.6931)" in printed
