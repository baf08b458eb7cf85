"""A class page for the tests: its campaign, its desk and visitors who ask it by HTTP."""

import os
import sys
from pathlib import Path

from starlette.testclient import TestClient

from utils.classroom.app import Desk, build
from utils.classroom.comparing import Comparisons
from utils.classroom.room import open_room
from utils.classroom.security import Buckets
from utils.classroom.training import Job

ADDRESS = "http://192.168.1.20:8000"
CAMPAIGN = "lớp 10A"

# a program in place of the training: it reports three steps and ends, or waits to be stopped
TRAINER = """
import json, sys, time
votes = [json.loads(line) for line in open(sys.argv[1], encoding="utf-8")]
say = lambda **event: print("@class " + json.dumps(event), flush=True)
print("a line of a library")
for step in (1, 2, 3):
    say(stage="training", step=step, steps=3)
{then}
metrics = dict(pairs=len(votes), steps=3, kl=1.5)
answers = [dict(question="Vì sao trời xanh?", before="Do biển <b>xanh</b>.", after="Do tán xạ.")]
say(stage="done", result=dict(metrics=metrics, answers=answers))
"""


def machine_is_free() -> bool:
    """Whether other programs leave a core: only then is a time in milliseconds claimed."""
    return os.getloadavg()[0] < (os.cpu_count() or 1)


def pairs(count=20):
    return [
        {
            "question": f"Câu hỏi số {n}: vì sao bầu trời có màu xanh?",
            "first": f"Câu trả lời ngắn {n}.",
            "second": f"Một câu trả lời dài hơn hẳn, số {n}, có lí do và có ví dụ.",
            "model_first": "llama-sft",
            "model_second": "llama-dpo",
        }
        for n in range(count)
    ]


def desk(store, folder: Path, *, local=False, then="", write=None, count=20, say=print) -> Desk:
    """A class on `count` pairs; `then` is code that the stand-in of the training runs."""
    store.add_pairs(CAMPAIGN, pairs(count))
    room = open_room(store, CAMPAIGN, folder, local=local, say=say)
    command = (sys.executable, "-c", TRAINER.replace("{then}", then))
    comparisons = Comparisons(write, ("llama-sft", "llama-dpo"), seconds=1) if write else None
    return Desk(room, Job(folder / "training", command), ADDRESS, comparisons)


class Visitor(TestClient):
    """A browser of its own: it has its own cookies, and sends the headers that a browser sends."""

    def __init__(self, desk: Desk, app=None, host=ADDRESS, client=("192.168.1.77", 50000)):
        super().__init__(app or build(desk, Buckets(1e6, 1e6)), base_url=host, client=client)
        self.headers["origin"] = host
        self.desk = desk

    def tell(self, path, **data):
        return self.post(path, json=data)

    def joins(self, name, code=None):
        return self.tell("/api/join", code=code or self.desk.room.code or "", name=name)

    def votes(self, item, choice, key="a-key-of-a-click"):
        return self.tell("/api/vote", item=item, choice=choice, key=key)

    def teaches(self):
        """Become the teacher with a new secret."""
        assert self.tell("/api/enter", secret=self.desk.room.new_secret()).status_code == 200
        return self
