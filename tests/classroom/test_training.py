"""The training on a class's votes, in its own process with the smallest stand-in."""

import json
import os
import random
import subprocess

import pytest

from tests.helpers import tiny_lessons, warm
from utils.classroom.training import ARTIFACT, EVENT, held_out_questions
from utils.course.paths import ROOT
from utils.data import load_preferences, science_questions
from utils.votes.pairs import shown
from utils.votes.store import Vote, read_votes, write_votes


def class_votes(voters=3, items=12):
    """Votes for the longer answer, by voters who see the sides in different orders."""
    test = load_preferences(quiet=True)["test"]
    rows = test.filter(lambda row: row["tier"] == "systematic").select(range(items))  # short ones
    votes = []
    for row in rows:
        pair = {"question": row["question"], "first": row["chosen"], "second": row["rejected"]}
        for number in range(voters):
            screen = shown(pair, random.Random(f"{number} {row['id']}").random() < 0.5)
            choice = "a" if len(screen.answer_a) >= len(screen.answer_b) else "b"
            facts = {"annotator": f"n{number}", "source": "class", "status": "accepted"}
            votes.append(Vote(**vars(screen), choice=choice, **facts))
    return votes


def trained(folder, votes):
    """The events of a training in a process of its own."""
    write_votes(votes, folder / "votes.jsonl")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([tiny_lessons.FOLDER, os.environ.get("PYTHONPATH", "")]),
        "COURSE_ARTIFACTS": str(folder / "artifacts"),
        "COURSE_PROFILE": "lab",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [warm.python(environment), "-m", "utils.classroom.training", str(folder / "votes.jsonl")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith(EVENT)]
    return [json.loads(line.removeprefix(EVENT)) for line in lines]


def test_accepted_votes_become_an_adapter_with_answers_before_and_after(tmp_path):
    votes = class_votes()
    events = trained(tmp_path, votes)
    stages = list(dict.fromkeys(event["stage"] for event in events))
    assert stages == ["loading", "before", "training", "after", "done"]
    steps = [event["step"] for event in events if event["stage"] == "training"]
    assert steps == list(range(1, events[-1]["result"]["metrics"]["steps"] + 1))
    result = events[-1]["result"]
    assert result["metrics"]["pairs"] == 12 and result["metrics"]["kept_voters"] == 3
    assert result["metrics"]["kl_low"] <= result["metrics"]["kl"] <= result["metrics"]["kl_high"]
    asked = {vote.question for vote in votes}
    assert len(result["answers"]) == 8 and not asked & {a["question"] for a in result["answers"]}
    folder = tmp_path / "artifacts" / "lab" / ARTIFACT
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    assert read_votes(folder / "votes.jsonl") == votes


def test_too_few_votes_are_a_sentence(tmp_path):
    events = trained(tmp_path, class_votes(voters=1, items=2))
    assert events[-1]["stage"] == "failed"
    assert "give 2 pairs, and 4 are needed" in events[-1]["detail"]


@pytest.mark.parametrize("seed", [0, 1])
def test_questions_with_votes_are_never_held_out(seed):
    questions = science_questions()
    votes = [Vote("q", question, "x", "y", "a", "An") for question in questions[:-3]]
    assert set(held_out_questions(votes, questions, 8, seed)) == set(questions[-3:])
