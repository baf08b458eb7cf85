"""Figures in one style; the title of each figure names the run that it shows."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import DisplayHandle, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from utils.course.language import later, tr
from utils.course.notebooks import LESSONS, STEPS
from utils.judge.metrics import minimal_kl

NEGATIVE, NEUTRAL, POSITIVE = "#c44e52", "#8c8c8c", "#4c8c5a"  # they also differ in grey print
ACCENT, QUIET = "#35618f", "#d5dbe3"
SENTIMENT_COLOURS = (NEGATIVE, NEUTRAL, POSITIVE)


def use_style() -> None:
    """Set plain axes and font sizes that are readable on a projector."""
    plt.rcParams.update(
        {
            "figure.figsize": (7.2, 3.2),
            "figure.dpi": 90,
            "figure.constrained_layout.use": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 11,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "font.size": 10,
            "legend.frameon": False,
        }
    )


def table(rows: pd.DataFrame | Sequence[dict], decimals: int = 2) -> Styler:
    """A table for reading: no row numbers, text on the left, few decimals."""
    frame = pd.DataFrame(rows)
    left = [{"selector": "th, td", "props": "text-align: left; white-space: normal"}]
    plain = {"escape": "html"}  # the text of a model or a user must not become HTML
    styled = frame.style.hide().format(precision=decimals, **plain).format_index(axis=1, **plain)
    return styled.set_table_styles(left)


def pipeline(here: str) -> Figure:
    """The course's stages, with this notebook's stage in colour."""
    figure, axes = plt.subplots(figsize=(7.6, 1.9))
    axes.axis("off")
    axes.set_xlim(-0.5, 4.5)
    axes.set_ylim(-0.55, 1.75)
    for number, lesson in LESSONS.items():
        current, (x, y) = number == here, lesson.position
        axes.text(
            x,
            y,
            f"{number}  {tr(lesson.box)}",
            ha="center",
            va="center",
            color="white" if current else "black",
            bbox={"boxstyle": "round,pad=0.45", "fc": ACCENT if current else QUIET, "ec": "none"},
        )
        if current:
            axes.text(
                x, y + 0.5, tr("you are here"), ha="center", color=ACCENT, weight="bold", size=9
            )
    for start, end in STEPS:
        (x, y), (x_end, _) = LESSONS[start].position, LESSONS[end].position
        arrow = {"arrowstyle": "->", "color": "#555555"}
        axes.annotate("", (x_end - 0.4, y), (x + 0.4, y), arrowprops=arrow)
    return figure


def _box(axes: Axes, x: float, y: float, text: str, trained: bool = False) -> None:
    axes.text(
        x,
        y,
        text,
        ha="center",
        va="center",
        color="white" if trained else "black",
        bbox={"boxstyle": "round,pad=0.4", "fc": ACCENT if trained else QUIET, "ec": "none"},
    )


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": "#555555"})


def rlhf() -> Figure:
    """A text as a decision process, and below it the four models of PPO."""
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(8.4, 5.4), gridspec_kw={"height_ratios": [1, 1.75]}
    )
    for axes in (above, below):
        axes.axis("off")
        axes.set_xlim(0, 10)
    above.set_title(tr("A text as a decision process"))
    above.set_ylim(-0.2, 2.2)
    _box(above, 1.5, 1.0, "Hỏi: cô dạy thế nào ? Đáp:")
    tokens = ("cô", "giảng", "dễ", "hiểu", "⟨end⟩")
    for number, token in enumerate(tokens):
        _box(above, 3.9 + 1.05 * number, 1.0, token, trained=number == 2)
    above.plot([0.15, 5.2], [1.5, 1.5], color="#555555", lw=1)
    above.text(2.4, 1.68, tr("state: the prompt and the tokens so far"), ha="center")
    above.text(5.4, 1.68, tr("action: the next token"), color=ACCENT, weight="bold")
    above.text(1.5, 0.25, tr("prompt x"), ha="center", color="#555555")
    above.text(6.0, 0.25, tr("answer y"), ha="center", color="#555555")
    _arrow(above, (8.5, 1.0), (9.2, 1.0))
    above.text(9.25, 1.0, tr("reward r"), va="center", weight="bold")
    below.set_title(tr("The four models of PPO: blue is trained, grey stays as it is"))
    below.set_ylim(-0.2, 4.3)
    _box(below, 0.9, 2.0, tr("policy π\nwrites y"), trained=True)
    _box(below, 2.7, 2.0, tr("answer y"))
    _arrow(below, (1.6, 2.0), (2.1, 2.0))
    rows = (
        (3.5, tr("reward model"), tr("reward r of the whole answer"), False),
        (2.0, tr("reference $\\pi_{ref}$"), tr("KL: the distance to the start"), False),
        (0.5, tr("value model V"), tr("the reward expected at each token"), True),
    )
    for y, model, gives, trained in rows:
        _box(below, 4.6, y, model, trained)
        _arrow(below, (3.3, 2.0 + 0.2 * (y - 2.0)), (3.65, y))
        below.text(5.65, y + 0.14, gives, fontsize=9, color="#555555")
        below.plot([5.55, 8.35], [y, y], color="#555555", lw=1)
        _arrow(below, (8.35, y), (8.75, 2.0 + 0.2 * (y - 2.0)))
    below.text(9.35, 2.0, tr("advantage\nA"), ha="center", va="center", weight="bold")
    below.plot([9.35, 9.35, 0.9], [1.45, -0.1, -0.1], color=ACCENT, lw=1.4)
    below.annotate("", (0.9, 1.5), (0.9, -0.12), arrowprops={"arrowstyle": "->", "color": ACCENT})
    below.text(
        1.05, 0.05, tr("the losses update the policy and the value model"), color=ACCENT, fontsize=9
    )
    return figure


def class_balance(counts: Mapping[str, Sequence[int]], classes: Sequence[str], title: str) -> Axes:
    """The share of each class in each split, with the counts on the bars."""
    figure, axes = plt.subplots(figsize=(7.2, 2.6))
    left = np.zeros(len(counts))
    totals = np.array([sum(row) for row in counts.values()])
    for position, name in enumerate(classes):
        number = np.array([row[position] for row in counts.values()])
        share = number / totals
        axes.barh(list(counts), share, left=left, color=SENTIMENT_COLOURS[position], label=name)
        for row, (start, width) in enumerate(zip(left, share, strict=True)):
            axes.text(
                start + width / 2,
                row,
                f"{number[row]:,}",
                ha="center",
                va="center",
                color="white",
                fontsize=8,
            )
        left += share
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    figure.legend(ncols=3, loc="outside lower center")
    axes.set_title(title)
    return axes


def histogram(
    groups: Mapping[str, Sequence[float]], colours: Sequence[str], label: str, title: str
) -> Axes:
    """Overlaid histograms with the same bins, as densities."""
    _, axes = plt.subplots()
    values = np.concatenate([np.asarray(list(group), dtype=float) for group in groups.values()])
    bins = np.histogram_bin_edges(values, bins=30)
    for (name, group), colour in zip(groups.items(), colours, strict=True):
        axes.hist(list(group), bins=bins, density=True, alpha=0.55, color=colour, label=name)
    axes.set_xlabel(tr(label))
    axes.set_ylabel(tr("density"))
    axes.legend()
    axes.set_title(tr(title))
    return axes


def confusion(matrix: np.ndarray, classes: Sequence[str], title: str) -> Axes:
    """The confusion matrix: counts, coloured by their share of the true class."""
    _, axes = plt.subplots(figsize=(4.2, 3.4))
    shares = matrix / matrix.sum(axis=1, keepdims=True)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row in range(len(classes)):
        for column in range(len(classes)):
            axes.text(
                column,
                row,
                f"{matrix[row, column]}\n{shares[row, column]:.0%}",
                ha="center",
                va="center",
                color="white" if shares[row, column] > 0.5 else "black",
            )
    axes.set_xticks(range(len(classes)), classes)
    axes.set_yticks(range(len(classes)), classes)
    axes.set_xlabel(tr("predicted"))
    axes.set_ylabel(tr("true"))
    axes.set_title(tr(title))
    return axes


def calibration(
    confidence: np.ndarray, accuracy: np.ndarray, counts: np.ndarray, error: float, title: str
) -> Axes:
    """The share of right answers over the confidence; the diagonal is perfect calibration."""
    _, axes = plt.subplots(figsize=(4.2, 3.4))
    axes.plot([0, 1], [0, 1], color=QUIET, zorder=0)
    axes.scatter(confidence, accuracy, s=20 + 300 * counts / counts.sum(), color=ACCENT)
    axes.set_xlim(0.3, 1.02)
    axes.set_ylim(0, 1.05)
    axes.set_xlabel(tr("confidence of the predicted class"))
    axes.set_ylabel(tr("share that was right"))
    axes.set_title(f"{tr(title)} (ECE {error:.3f})")
    return axes


def training_curves(log: pd.DataFrame, title: str) -> Figure:
    """Losses on the left and validation scores on the right, from a Trainer's log history."""
    figure, (left, right) = plt.subplots(1, 2)
    losses = log.dropna(subset="loss")
    left.plot(losses["epoch"], losses["loss"], color=NEUTRAL, lw=1, label=tr("training loss"))
    scores = log.dropna(subset="eval_loss")
    left.plot(scores["epoch"], scores["eval_loss"], "o-", color=ACCENT, label=tr("validation loss"))
    right.plot(scores["epoch"], scores["eval_accuracy"], "o-", color=NEUTRAL, label=tr("accuracy"))
    right.plot(scores["epoch"], scores["eval_macro_f1"], "o-", color=ACCENT, label=tr("macro F1"))
    best = scores["eval_macro_f1"].idxmax()
    right.axvline(scores["epoch"][best], color=NEGATIVE, lw=1, ls=":", label=tr("kept"))
    for axes in (left, right):
        axes.set_xlabel(tr("epoch"))
        axes.legend()
    left.set_title(title)
    right.set_title(tr("Validation"))
    return figure


def learning_curve(points: pd.DataFrame, title: str) -> Figure:
    """Accuracy and macro F1 over training rows: each run, and the mean of each model."""
    figure, panels = plt.subplots(1, 2)
    styles = {name: (NEUTRAL, "s--") for name in points["model"].unique()}
    styles |= {name: (ACCENT, "o-") for name in styles if "stand-in" in name}
    for axes, column, label in zip(
        panels, ("accuracy", "macro_f1"), (tr("accuracy"), tr("macro F1")), strict=True
    ):
        for name, (colour, style) in styles.items():
            runs = points[points["model"] == name]
            mean = runs.groupby("rows")[column].mean()
            axes.plot(mean.index, mean, style, color=colour, ms=4, label=name)
            axes.scatter(runs["rows"], runs[column], s=8, color=colour, alpha=0.5)
        ticks = sorted(points["rows"].unique())
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks], fontsize=8)
        axes.set_xticks([], minor=True)
        axes.set_xlabel(tr("training sentences"))
        axes.set_ylabel(tr("{measure} on test", measure=label))
    figure.legend(*panels[0].get_legend_handles_labels(), ncols=2, loc="outside lower center")
    figure.suptitle(title, fontsize=11, weight="bold", x=0.01, ha="left")
    return figure


class Live:
    """Eight training curves that are redrawn while PPO runs."""

    CURVES = (
        ("reward", later("reward")),
        ("negative_rate", later("share negative (reward)")),
        ("kl", later("KL, nats per episode")),
        ("length", later("length, tokens")),
        ("entropy", later("entropy, nats per token")),
        ("eos_rate", later("share that ended")),
        ("clip_fraction", later("clip fraction")),
        ("value_loss", later("value loss")),
    )

    def __init__(self, title: str) -> None:
        self.title, self.history = title, []
        self.handle: DisplayHandle | None = None

    def add(self, metrics: Mapping[str, float]) -> None:
        """Store the metrics of one update; draw the curves at every tenth update."""
        self.history.append(dict(metrics))
        if len(self.history) % 10:
            return
        figure = self.draw()
        if self.handle is None:
            self.handle = display(figure, display_id=True)
        else:
            self.handle.update(figure)
        plt.close(figure)

    def draw(self) -> Figure:
        """All curves so far."""
        figure, grid = plt.subplots(2, 4, figsize=(9.6, 4.0))
        for axes, (name, label) in zip(grid.flat, self.CURVES, strict=True):
            values = [row[name] for row in self.history]
            axes.plot([row["update"] for row in self.history], values, color=ACCENT, lw=1.2)
            axes.set_title(tr(label), fontsize=9)
            axes.margins(y=0.15)
        for axes in grid[1]:
            axes.set_xlabel(tr("update"))
        figure.suptitle(f"PPO ({self.title})", fontsize=11, weight="bold", x=0.01, ha="left")
        return figure


METHOD_STYLES = {
    "PPO": (ACCENT, "o-"),
    later("PPO, this run"): ("#111111", "o-"),
    later("PPO, scaled"): (ACCENT, "o:"),
    "RLOO": ("#b5762a", "s-"),
    later("RLOO, scaled"): ("#b5762a", "s:"),
    "GRPO": ("#7a5195", "^-"),
    later("GRPO, scaled"): ("#7a5195", "^:"),
    later("SFT on negatives"): ("#7f7f7f", "v-"),
    "best-of-n": (POSITIVE, "D--"),
}


def _scaled(method: str) -> bool:
    """Whether a name of METHOD_STYLES is that of policies with a scaled change of the weights."""
    return method.endswith(", scaled")


def _paths(points: Sequence, method: str) -> list[list]:
    """The points of a method, one list per seed, in the order of the steps."""
    own = [point for point in points if point.method == method]
    seeds = dict.fromkeys(point.seed for point in own)
    return [
        sorted((point for point in own if point.seed == seed), key=lambda point: point.step)
        for seed in seeds
    ]


def _bars(path: Sequence, name: str) -> np.ndarray:
    """Distances of the interval's ends from the mean, as `errorbar` wants them: (2, points)."""
    middle = np.array([getattr(point, name) for point in path])
    low, high = np.array([point.intervals[name] for point in path]).T
    return np.maximum(np.stack([middle - low, high - middle]), 0)


def _errorbar(axes: Axes, path: Sequence, x: str, y: str, **look: object) -> None:
    """The points of a path with the intervals of y."""
    columns = ([getattr(point, name) for point in path] for name in (x, y))
    axes.errorbar(*columns, yerr=_bars(path, y), ms=4, lw=1.2, elinewidth=0.6, **look)


def frontier(points: Sequence, base_rates: Sequence[float], title: str) -> Axes:
    """The share of negatives over KL, with 95 % intervals; the impossible region in grey.

    A curve begins at the base policy. Small numbers at the points of one PPO are updates. Scaled
    policies of other methods may go on beyond the right edge.
    """
    _, axes = plt.subplots(figsize=(7.6, 4.6))
    shares = np.linspace(float(np.mean(base_rates)), 0.995, 60)
    floor = [minimal_kl(base_rates, share) for share in shares]
    shown = (p.kl for p in points if p.method == "PPO, scaled" or not _scaled(p.method))
    right = 1.08 * max([*shown, floor[-1]])
    methods = {point.method for point in points}
    numbered = "PPO, this run" if "PPO, this run" in methods else "PPO"
    axes.plot(floor, shares, color="#555555", lw=1.5)
    axes.fill_between([0, *floor, right], [shares[0], *shares, 1.0], 1.0, color="#e6e6e6", lw=0)
    axes.annotate(
        tr("impossible for any method"),
        (0.4 * minimal_kl(base_rates, 0.9), 0.9),
        (floor[-1] + 0.03 * right, 0.955),
        color="#555555",
        arrowprops={"arrowstyle": "-", "color": "#555555", "lw": 0.8},
    )
    for method, (colour, style) in METHOD_STYLES.items():
        for number, path in enumerate(_paths(points, method)):
            look = {"fmt": style, "color": colour, "label": None if number else tr(method)}
            _errorbar(axes, path, "kl", "share", xerr=_bars(path, "kl"), **look)
            if number or method not in (numbered, "best-of-n"):  # one seed is enough
                continue
            for point in path[:: max(1, len(path) // 6)]:
                text = f"n={point.step}" if method == "best-of-n" else f"{point.step}"
                note = {"textcoords": "offset points", "size": 7, "color": colour}
                axes.annotate(text, (point.kl, point.share), (4, -9), **note)
    axes.set_xlim(0, right)
    lowest = min([shares[0], *(point.intervals["share"][0] for point in points)])
    axes.set_ylim(lowest - 0.02, 1.0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_xlabel(tr("KL to the base policy, nats per episode"))
    axes.set_ylabel(tr("negative, by the independent judge"))
    axes.legend(loc="lower right")
    axes.set_title(title)
    return axes


def objective(points: Sequence, base: float, best: float, title: str) -> Axes:
    """J on held-out prompts over the updates, with 95 % intervals, beside base and optimum."""
    _, axes = plt.subplots()
    axes.axhline(best, color=POSITIVE, ls="--", lw=1.2, label=tr("optimum of the objective"))
    axes.axhline(base, color=NEUTRAL, ls=":", lw=1.2, label=tr("base policy"))
    for method, (colour, style) in METHOD_STYLES.items():
        if method == "best-of-n" or _scaled(method):  # they have no updates
            continue
        for number, path in enumerate(_paths(points, method)):
            look = {"fmt": style, "color": colour, "label": None if number else tr(method)}
            _errorbar(axes, path, "step", "objective", **look)
    axes.set_xlabel(tr("update"))
    axes.set_ylabel(tr("J = reward − β · KL"))
    axes.legend(loc="lower right")
    axes.set_title(title)
    return axes


def loss_and_pull(
    x: Sequence[float],
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    label: str,
    title: str,
) -> Figure:
    """Each loss on the left; on the right its pull, which is minus its slope."""
    figure, (left, right) = plt.subplots(1, 2)
    colours = (ACCENT, METHOD_STYLES["RLOO"][0])
    for (name, (loss, pull)), colour in zip(lines.items(), colours, strict=False):
        left.plot(x, loss, color=colour, label=name)
        right.plot(x, pull, color=colour, label=name)
    for axes, text in ((left, tr("loss")), (right, tr("pull (minus the slope)"))):
        axes.axvline(0, color=QUIET, lw=1, zorder=0)
        axes.set_xlabel(tr(label), fontsize=9)
        axes.set_ylabel(text)
    left.legend()
    figure.suptitle(tr(title), fontsize=11, weight="bold", x=0.01, ha="left")
    return figure


def clip_curves(
    ratios: Sequence[float],
    losses: Sequence[Sequence[float]],
    flat: Sequence[Sequence[bool]],
    clip_range: float,
    title: str,
) -> Figure:
    """PPO's loss for a good and a bad answer; it is red and dashed where its gradient is zero."""
    figure, panels = plt.subplots(1, 2)
    names = (tr("A = +1, a good answer"), tr("A = −1, a bad answer"))
    for axes, name, loss, still in zip(panels, names, losses, flat, strict=True):
        loss, still = np.asarray(loss), np.asarray(still)
        axes.axvspan(1 - clip_range, 1 + clip_range, color="#f0f3f7", zorder=0)
        axes.axvline(1.0, color=QUIET, lw=1)
        axes.plot(
            ratios, np.where(still, np.nan, loss), color=ACCENT, lw=2, label=tr("gradient is not 0")
        )
        dead = np.where(still, loss, np.nan)
        axes.plot(ratios, dead, "--", color=NEGATIVE, lw=2, label=tr("gradient is 0"))
        axes.set_title(name, fontsize=10, weight="normal")
        axes.set_xlabel(tr("ratio ρ: new / old probability"), fontsize=9)
        axes.set_ylabel(tr("loss"))
        axes.legend()
    figure.suptitle(tr(title), fontsize=11, weight="bold", x=0.01, ha="left")
    return figure


def pair_training(log: pd.DataFrame, title: str) -> Figure:
    """A reward model's training loss on the left; validation accuracy and margin on the right."""
    figure, (left, right) = plt.subplots(1, 2)
    left.plot(log["step"], log["loss"], color=QUIET, lw=1, label=tr("one batch"))
    smooth = log["loss"].rolling(20, min_periods=1).mean()
    left.plot(log["step"], smooth, color=ACCENT, label=tr("mean of 20 batches"))
    left.axhline(np.log(2), color=NEGATIVE, lw=1, ls=":", label=tr("ln 2: no preference"))
    scores = log.dropna(subset="accuracy")
    (accuracy,) = right.plot(scores["step"], scores["accuracy"], "o-", color=ACCENT, ms=4)
    right.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    twin = right.twinx()
    twin.spines["right"].set_visible(True)
    (lead,) = twin.plot(scores["step"], scores["lead"], "s--", color=METHOD_STYLES["RLOO"][0], ms=4)
    right.legend(
        [accuracy, lead], [tr("accuracy (left)"), tr("mean lead d (right)")], loc="lower right"
    )
    left.legend(loc="upper right", frameon=True, framealpha=1, edgecolor="none")
    for axes in (left, right):
        axes.set_xlabel(tr("step"))
    left.set_title(tr("Training loss"), fontsize=10, weight="normal")
    right.set_title(tr("Validation"), fontsize=10, weight="normal")
    figure.suptitle(title, fontsize=11, weight="bold", x=0.01, ha="left")
    return figure


def small_multiples(
    steps: Sequence[float], curves: Mapping[str, Sequence[float]], label: str, title: str
) -> Figure:
    """One small panel per curve, all over the same steps."""
    figure, panels = plt.subplots(1, len(curves), figsize=(2.9 * len(curves), 2.7))
    for axes, (name, values) in zip(np.atleast_1d(panels), curves.items(), strict=True):
        axes.plot(steps, values, color=ACCENT, lw=1.4)
        axes.set_title(name, fontsize=9, weight="normal")
        axes.set_xlabel(tr(label))
        axes.margins(y=0.12)
    figure.suptitle(title, fontsize=11, weight="bold", x=0.01, ha="left")
    return figure


def preference_curves(log: pd.DataFrame, kl: Sequence[tuple[int, float]], title: str) -> Figure:
    """A DPO run's loss, implicit rewards, margin, accuracy and KL, from the Trainer's log."""
    figure, panels = plt.subplots(1, 5, figsize=(11.5, 2.6))
    steps = log["step"]
    panels[0].plot(steps, log["loss"], color=ACCENT)
    panels[0].axhline(np.log(2), color=NEGATIVE, lw=1, ls=":")
    panels[1].plot(steps, log["rewards/chosen"], color=POSITIVE, label=tr("chosen"))
    panels[1].plot(steps, log["rewards/rejected"], color=NEGATIVE, label=tr("rejected"))
    panels[1].axhline(0, color=QUIET, lw=1)
    panels[1].legend(fontsize=8)
    panels[2].plot(steps, log["rewards/margins"], color=ACCENT)
    panels[3].plot(steps, log["rewards/accuracies"], color=ACCENT)
    panels[3].axhline(0.5, color=QUIET, lw=1)
    if kl:
        panels[4].plot(*zip(*kl, strict=True), "o-", color=ACCENT, ms=4)
    names = (
        tr("loss (dotted: ln 2)"),
        tr("implicit rewards"),
        tr("margin"),
        tr("accuracy"),
        tr("KL, nats per answer"),
    )
    for axes, name in zip(panels, names, strict=True):
        axes.set_title(name, fontsize=9, weight="normal")
        axes.set_xlabel(tr("step"))
    figure.suptitle(title, fontsize=11, weight="bold", x=0.01, ha="left")
    return figure


def _share_axis(axes: Axes) -> None:
    """A y axis in per cent over at least 10 points, so that noise of one point looks small."""
    low, high = axes.get_ylim()
    lack = max(0.0, 0.1 - (high - low))
    axes.set_ylim(low - lack / 2, high + lack / 2)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")


def predicted_rates(
    runs: Sequence[Mapping[str, object]],
    worth: float,
    imitated: float,
    mine: Mapping[float, float],
    title: str,
) -> Axes:
    """The mean rate of the attributes over β: predicted, recorded, and of this run (`mine`)."""
    _, axes = plt.subplots(figsize=(6.4, 3.8))
    recorded = [run for run in runs if run["way"] == "DPO"]
    start = np.mean([np.mean(run["reference_rates"]) for run in runs])
    betas = np.geomspace(0.4, 2.6, 100)
    logit = np.log(start / (1 - start)) + worth / betas
    axes.plot(betas, 1 / (1 + np.exp(-logit)), color=ACCENT, label=tr("DPO, predicted"))
    axes.axhline(imitated, color=NEUTRAL, ls="--", label=tr("SFT on chosen, predicted"))
    axes.axhline(start, color=QUIET, ls=":", label=tr("reference"))
    for number, beta in enumerate(sorted({run["strength"] for run in recorded})):
        seeds = [np.mean(run["rates"]) for run in recorded if run["strength"] == beta]
        name = tr("DPO, three seeds") if number == 0 else None
        axes.plot([beta] * len(seeds), seeds, "o", color=ACCENT, ms=6, alpha=0.7, label=name)
    supervised = [np.mean(run["rates"]) for run in runs if run["way"] == "SFT"]
    axes.plot(
        [2.5] * len(supervised), supervised, "s", color=NEUTRAL, ms=6, label=tr("SFT, three seeds")
    )
    axes.plot(
        list(mine), list(mine.values()), "*", color=NEGATIVE, ms=15, label=tr("DPO, this run")
    )
    axes.set_xscale("log")
    axes.set_xticks([0.5, 1, 2], ["0.5", "1", "2"])
    axes.minorticks_off()
    axes.set_ylim(0.35, 1)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_xlabel(tr("β (SFT has none; its dots are at the right)"))
    axes.set_ylabel(tr("mean rate of the attributes"))
    axes.legend(fontsize=8, loc="upper right")
    axes.set_title(title)
    return axes


def method_scatter(runs: pd.DataFrame, title: str) -> Axes:
    """Preference accuracy over chrF to the reference answers, one point per seed and method."""
    _, axes = plt.subplots(figsize=(5.4, 3.2))
    styles = (("v", NEUTRAL), ("^", POSITIVE), ("o", ACCENT), ("s", "#b5762a"))
    kinds = runs.groupby("method", sort=False)
    for (method, group), (mark, colour) in zip(kinds, styles, strict=False):
        axes.scatter(
            group["chrf"], group["preference_accuracy"], marker=mark, color=colour, label=method
        )
    axes.set_xlabel(tr("chrF of the answers to the reference answers"))
    axes.set_ylabel(tr("prefers the chosen answer"))
    axes.legend()
    axes.margins(0.2)
    _share_axis(axes)
    axes.set_title(title)
    return axes


def tier_accuracy(rows: Sequence[Mapping[str, object]], title: str) -> Figure:
    """Plain and reward accuracy per tier of the pairs, one colour per kind of negatives."""
    figure, panels = plt.subplots(1, 2, figsize=(7.2, 4.6), sharey=True)
    tiers = list(dict.fromkeys(row["tier"] for row in rows))
    kinds = list(dict.fromkeys(row["negatives"] for row in rows))
    looks = ((NEUTRAL, "o"), (NEGATIVE, "s"), (ACCENT, "^"), (POSITIVE, "D"), ("#b5762a", "v"))
    names = (("plain", tr("plain accuracy")), ("reward", tr("reward accuracy")))
    for axes, (name, label) in zip(panels, names, strict=True):
        for number, (kind, (colour, mark)) in enumerate(zip(kinds, looks, strict=False)):
            chosen = [row for row in rows if row["negatives"] == kind and row[name] is not None]
            heights = [tiers.index(row["tier"]) + 0.15 * (number - 1.5) for row in chosen]
            ends = [[row[f"{name}_low"] for row in chosen], [row[f"{name}_high"] for row in chosen]]
            axes.hlines(heights, *ends, color=colour, lw=1.2)
            means = [row[name] for row in chosen]
            axes.plot(means, heights, mark, color=colour, ms=5, label=kind)
        axes.axvline(0.5, color="black", lw=1, ls=":")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.set_xlabel(label)
    panels[0].set_yticks(range(len(tiers)), tiers)
    panels[0].invert_yaxis()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=len(labels), fontsize=8, loc="outside lower center")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    return figure
