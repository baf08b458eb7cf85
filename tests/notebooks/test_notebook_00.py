"""The losses of notebook 00: the folded solutions are those of `utils.losses`."""

import ast
import inspect
import json
import re
import textwrap
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from utils import losses
from utils.course.notebooks import path_of
from utils.exercises import check, equality, notebook_00
from utils.show import plots

TRAINED = re.compile(r"\btrained\b|\bbroken\b|\bmisread\b|\blog, f|hand_over|utils.course import")


LOSSES = {
    "sequence_logps": "00.1",
    "bradley_terry_loss": "00.2",
    "policy_gradient_loss": "00.3",
    "clipped_policy_loss": "00.4",
    "k1": "00.5",
    "k3": "00.6",
    "dpo_loss": "00.7",
    "orpo_loss": "00.8",
}


def cells(kind: str) -> list[dict]:
    everything = json.loads(path_of("00").read_text(encoding="utf-8"))["cells"]
    return [cell for cell in everything if cell["cell_type"] == kind]


def sources(kind: str = "code") -> list[str]:
    return ["".join(cell["source"]) for cell in cells(kind)]


def folded() -> dict[str, str]:
    """Function name -> code of each solution that the notebook shows folded."""
    blocks = re.findall(
        r"(?s)<summary>Solution.*?```python\n(.*?)```", "\n".join(sources("markdown"))
    )
    return {re.match(r"def (\w+)", block).group(1): block for block in blocks}


def body(code: str) -> str:
    """The statements of a function, without its docstring and type hints."""
    (function,) = ast.parse(textwrap.dedent(code)).body
    for node in ast.walk(function):
        if isinstance(node, ast.FunctionDef):
            node.returns, node.decorator_list = None, []
            if ast.get_docstring(node) is not None:
                node.body = node.body[1:]
            for argument in node.args.args:
                argument.annotation = None
    return ast.dump(function)


@pytest.fixture(scope="module")
def lesson(tmp_path_factory):
    """What the notebook's cells define, without its trainings."""
    import matplotlib.pyplot as plt

    plt.switch_backend("agg")
    equality.EQUALITIES.clear()
    profile = SimpleNamespace(offline=True, name="lab")
    folder = str(tmp_path_factory.mktemp("checkpoints"))
    found = {"course": SimpleNamespace(profile=profile, seed=20, checkpoints=folder)}
    for source in sources():
        if not TRAINED.search(source):
            exec(compile(source, "notebook 00", "exec"), found)
    found["checked"] = dict(equality.EQUALITIES)
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


def test_every_equality_holds_and_compares_with_trl(lesson):
    checked = lesson["checked"]
    assert len(checked) == 13
    assert all(max(row.values()) < 1e-5 for row in checked.values())
    for library in ("RewardTrainer", "GRPOTrainer", "DPOTrainer", "odds_ratio_loss"):
        assert any(f"TRL {library}" in name for name in checked)


@pytest.mark.parametrize("name", LOSSES)
def test_the_cells_use_the_solution_that_is_folded(lesson, name):
    function = getattr(notebook_00, name)
    assert lesson[name] is function
    assert body(folded()[name]) == body(inspect.getsource(function))


def test_every_folded_solution_passes_its_check(lesson, capsys):
    names = {"torch": torch, "F": torch.nn.functional}
    numbered = [name for name in folded() if name not in LOSSES]
    exercises = LOSSES | {name: f"00.{9 + at}" for at, name in enumerate(numbered)}
    assert len(exercises) == 12
    for name, code in folded().items():
        exec(compile(code, "solution", "exec"), names)
        assert check(exercises[name], names[name]), capsys.readouterr().out


def test_each_stub_has_the_arguments_of_its_solution():
    stubs = "\n".join(source for source in sources() if "# your code" in source)
    for name, code in folded().items():
        if name in LOSSES:
            assert code.splitlines()[0] in stubs


def test_a_missing_detach_shows_in_the_gradient_only(lesson):
    (source,) = [source for source in sources() if "def not_detached" in source]
    names = dict(lesson)
    exec(compile(source, "notebook 00", "exec"), names)
    assert names["value"] == 0
    assert names["gradient"] > 0.1


def test_the_lesson_has_no_test_engineering():
    code = "\n".join(sources())
    for word in ("SimpleNamespace", "CAUGHT", "catch(", "monkeypatch"):
        assert word not in code


def test_the_picture_of_rlhf_overlaps_no_text():
    figure = plots.rlhf()
    figure.canvas.draw()
    for axes in figure.axes:
        boxes = [text.get_window_extent() for text in axes.texts if text.get_text()]
        for at, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[:at])


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
        for cell in cells("code")
        for output in cell["outputs"]
        if output["output_type"] == "stream"
    )
    assert int(re.search(r"checks_passed +(\d+)", printed).group(1)) == printed.count("equal: ")
    assert float(re.search(r"largest_difference +(\S+)", printed).group(1)) < 1e-5
    assert "DPO, first step (0.6931)" in printed
