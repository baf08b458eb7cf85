"""DPO on the accepted votes of a class, as in notebook 07, in a process of its own.

    python -m utils.classroom.training votes.jsonl

The arguments of DPO stand in a cell of notebook 07 only; the code of that cell runs here. The
process writes its progress as lines of JSON, so that the page stays responsive: see `Job`.
"""

import contextlib
import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

from utils.course.language import tr
from utils.course.paths import ROOT
from utils.votes.store import Vote, read_votes

ARTIFACT = "class_votes"
NOTEBOOK, RECIPE = "07_collect_preferences", "07-41"  # the cell with the arguments of DPO
STARTS = ("04_llama_dpo_vi_alpaca", "03_llama_sft_vi_alpaca")  # adapters, the best one first
EVENT = "@class "  # a line of progress begins with this
QUESTIONS = 8  # held-out questions that are answered before and after
EVERY = 10**6  # more than there are questions
FEWEST = 4  # pairs to train on
Say = Callable[[dict[str, object]], None]


def _starting_model(profile: "Profile", shelf: "Shelf") -> tuple:  # noqa: F821
    """The policy, its tokenizer, the base's name, and the name of the starting point."""
    from utils import models
    from utils.course import artifacts
    from utils.data import load_preferences
    from utils.models.adapters import ModelError

    pairs = load_preferences(offline=profile.offline, quiet=True)
    folder, name = models.labelled_source(profile.chat, pairs)
    found = [artifacts.find(start, shelf)[0] for start in STARTS]
    for start in [*filter(None, found), Path(name.replace("/", "_"))]:  # the last has no adapter
        try:
            policy = models.labelled_model(start, folder, profile)
        except ModelError:
            continue  # an adapter on another base
        return policy, models.chat_tokenizer(folder), name, models.start_name(start)
    raise AssertionError  # the bare model can always be a start


def held_out_questions(
    votes: Sequence[Vote], questions: Sequence[str], count: int, seed: int
) -> list[str]:
    """Some of the questions, of those on which nobody voted."""
    asked = {vote.question for vote in votes}
    free = [question for question in questions if question not in asked]
    return random.Random(seed).sample(free, min(count, len(free)))


def train(votes: Sequence[Vote], folder: Path, say: Say) -> dict[str, object]:
    """Train on what the reliable voters prefer; return figures, and answers before and after."""
    import numpy as np
    from transformers import TrainerCallback

    from utils import models
    from utils.course import artifacts, profiles
    from utils.course.errors import CourseError
    from utils.course.session import SEED
    from utils.data import load_preferences, voting_questions
    from utils.finetune import fit
    from utils.finetune.launch import programs
    from utils.judge import bootstrap
    from utils.votes import reliable, to_dataset, write_votes

    profile = profiles.choose()
    settings, shelf = profile.labelling, artifacts.shelf(profile.name)
    trusted = reliable(votes)
    rows = to_dataset(trusted.votes).rename_column("prompt", "question")
    if len(rows) < FEWEST:
        raise CourseError(
            tr(
                "The accepted votes give {count} pairs, and {fewest} are needed: accept more "
                "votes, or wait for more.",
                count=len(rows),
                fewest=FEWEST,
            )
        )
    say({"stage": "loading"})
    policy, tokenizer, base, start = _starting_model(profile, shelf)
    train_rows = models.fitting(rows, tokenizer, settings.max_length, settings.batch_size, SEED)
    pairs = load_preferences(offline=profile.offline, quiet=True)
    every = voting_questions(settings.families, pairs, EVERY, EVERY, SEED).held_out
    asked = held_out_questions(votes, every, QUESTIONS, SEED)

    def answers() -> list[str]:
        tokens = profile.chat.max_new_tokens
        return [r.text for r in models.reply(policy, tokenizer, asked, max_new_tokens=tokens)]

    say({"stage": "before", "pairs": len(train_rows), "model": base})
    before = answers()

    class Progress(TrainerCallback):
        """Reports every step."""

        def on_step_end(self, args, state, control, **_) -> None:
            """Report the step."""
            say({"stage": "training", "step": state.global_step, "steps": state.max_steps})

    recipe = {
        **{"policy": policy, "tokenizer": tokenizer, "train": train_rows, "settings": settings},
        "course": SimpleNamespace(
            profile=profile, seed=SEED, checkpoints=str(folder / "checkpoints")
        ),
    }
    for _, code in programs(NOTEBOOK, {RECIPE: ""}):
        exec(code, recipe)

    def build(batch_size: int, accumulation: int) -> "SharedPromptDPOTrainer":  # noqa: F821
        trainer = recipe["build"](batch_size, accumulation)
        trainer.add_callback(Progress())
        return trainer

    trainer = fit(build, settings.batch_size, settings.accumulation)
    say({"stage": "after"})
    after = answers()
    log = [entry for entry in trainer.state.log_history if "rewards/margins" in entry]
    nats = models.sampled_kl(
        policy, tokenizer, asked, max_new_tokens=profile.chat.max_new_tokens, seed=SEED
    ).numpy()
    low, high = bootstrap(np.mean, nats) if len(nats) else (0.0, 0.0)
    metrics = {
        "pairs": len(train_rows),
        "voters": len({vote.annotator for vote in votes}),
        "kept_voters": sum(standing.kept for standing in trusted.standings),
        "divided_items": len(trusted.split),
        "steps": trainer.state.global_step,
        "loss": float(log[-1]["loss"]) if log else None,
        "margin": float(log[-1]["rewards/margins"]) if log else None,
        "kl": float(nats.mean()) if len(nats) else None,
        "kl_low": float(low),
        "kl_high": float(high),
    }
    with artifacts.publish(ARTIFACT, shelf, metrics=metrics, keep_former=True) as out:
        models.save_adapter(policy, tokenizer, out, base)
        write_votes(votes, out / "votes.jsonl")
    table = zip(asked, before, after, strict=True)
    return {
        "model": base,
        "start": start,
        "profile": profile.name,
        "metrics": metrics,
        "answers": [{"question": q, "before": b, "after": a} for q, b, a in table],
    }


def main(path: str) -> None:
    """Train on the votes of a file, and write the progress to the standard output."""
    if hasattr(os, "nice"):
        os.nice(10)  # the votes of the class come first
    from utils.course import profiles, session
    from utils.course.errors import CourseError

    def say(event: dict[str, object]) -> None:
        print(EVENT + json.dumps(event, ensure_ascii=False), flush=True)

    if profiles.choose().offline:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    session.quiet()
    session.set_seed(session.SEED)
    try:
        say({"stage": "done", "result": train(read_votes(path), Path(path).parent, say)})
    except CourseError as error:
        say({"stage": "failed", "detail": str(error)})


# --- The page's side -----------------------------------------------------------------------------


@dataclass
class Job:
    """One training at a time in a child process; the page reads `state`."""

    folder: Path  # of the votes file and of the log
    command: Sequence[str] = (sys.executable, "-m", "utils.classroom.training")
    state: dict[str, object] = field(default_factory=lambda: {"stage": "idle"})

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen | None = None
        self._stopping = False

    @property
    def running(self) -> bool:
        """Whether a child trains now."""
        return self._child is not None and self._child.poll() is None

    def start(self, votes: Sequence[Vote]) -> bool:
        """Start a training on these votes; False if one runs."""
        from utils.votes.store import write_votes

        with self._lock:
            if self.running:
                return False
            self.folder.mkdir(parents=True, exist_ok=True)
            write_votes(votes, self.folder / "votes.jsonl")
            threads = str(max(1, (os.cpu_count() or 2) - 1))  # one core is left for the page
            self.state, self._stopping = {"stage": "starting"}, False
            self._child = subprocess.Popen(
                [*self.command, str(self.folder / "votes.jsonl")],
                cwd=ROOT,
                env={
                    "OMP_NUM_THREADS": threads,
                    **os.environ,
                    "COURSE_PROGRESS": "0",
                    "PYTHONIOENCODING": "utf-8",
                },
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
            )
            reader = threading.Thread(target=self._read, args=[self._child], daemon=True)
            reader.start()
            return True

    def _read(self, child: subprocess.Popen) -> None:
        with open(self.folder / "training.log", "w", encoding="utf-8") as log:
            for line in child.stdout:
                log.write(line)
                log.flush()
                _, found, event = line.partition(EVENT)  # a library may not have ended its line
                if found:
                    with contextlib.suppress(ValueError):
                        self.state = json.loads(event, parse_constant=lambda _: None)  # no NaN
        status = child.wait()
        if self._stopping:
            self.state = {"stage": "stopped"}
        elif self.state.get("stage") not in ("done", "failed"):
            self.state = {
                "stage": "failed",
                "detail": tr(
                    "The training ended with status {status}: see training.log.", status=status
                ),
            }

    def stop(self) -> None:
        """End the training; nothing of it is saved."""
        with self._lock:
            if self.running:
                self._stopping = True
                self._child.terminate()
                try:
                    self._child.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    self._child.kill()


if __name__ == "__main__":
    main(sys.argv[1])
