"""A class votes by HTTP while the server is killed twice: lost votes, double votes, latency.

    python benchmarks/classroom.py [--clients 30 200] [--url postgresql+psycopg://…]

Each client has an address of its own in 127.0.0.0/8, joins, and votes on 20 pairs with a pause
before each vote. After a third and after two thirds of the votes the server is killed by SIGKILL
and started again; a client sends an unanswered vote again with the same key, as the page does.
"""

import argparse
import asyncio
import json
import os
import platform
import random
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import httpx
import numpy as np

from utils.course.paths import BENCHMARKS, ROOT
from utils.votes.pairs import write_pairs
from utils.votes.store import open_store

CAMPAIGN, ITEMS, PATIENCE = "load", 20, 60.0


@dataclass
class Run:
    """What the clients saw."""

    url: str  # of the store
    folder: Path
    port: int
    goal: int  # votes in all
    kills: Sequence[float] = (1 / 3, 2 / 3)  # shares of the votes after which the server is killed
    cast: dict[tuple[str, str], str] = field(default_factory=dict)  # the confirmed votes
    seconds: list[float] = field(default_factory=list)  # of each answered vote
    unhindered: list[float] = field(default_factory=list)  # of those that met no kill
    changes: int = 0  # the server was killed (odd) or listened again (even)
    repeated: int = 0  # requests that were sent again
    server: subprocess.Popen | None = None
    code: str = ""


def start(run: Run) -> None:
    """Start the server as `make class` does, and wait until it listens."""
    command = [
        *(sys.executable, str(ROOT / "tools" / "classroom.py"), "--no-prompts"),
        *("--import", str(run.folder / "pairs.json"), "--port", str(run.port)),
        *("--address", "127.0.0.1"),
    ]
    more = {"COURSE_VOTES": run.url, "COURSE_ARTIFACTS": str(run.folder), "COURSE_PROFILE": "lab"}
    with open(run.folder / "server.log", "ab") as log:
        run.server = subprocess.Popen(
            command, env=os.environ | more, stdout=log, stderr=subprocess.STDOUT
        )
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", run.port), timeout=1).close()
            break
        except OSError:
            if run.server.poll() is not None:
                raise RuntimeError((run.folder / "server.log").read_text()[-2000:]) from None
            time.sleep(0.05)
    found = re.findall(r"code: ([A-Z]{6})", (run.folder / "server.log").read_text())
    run.code = found[-1]


async def ask(run: Run, client: httpx.AsyncClient, path: str, data: dict | None = None) -> dict:
    """The answer of the server; a request without an answer is sent again."""
    end = time.monotonic() + PATIENCE
    begin = time.perf_counter()  # the wait for a killed server counts
    changes = run.changes
    while True:
        try:
            answer = await (client.post(path, json=data) if data else client.get(path))
            if answer.status_code == 200:
                if path == "/api/vote":
                    seconds = time.perf_counter() - begin
                    run.seconds.append(seconds)
                    if run.changes == changes and changes % 2 == 0:
                        run.unhindered.append(seconds)
                return answer.json()
            if answer.status_code not in (429, 503):
                raise RuntimeError(f"{path}: {answer.status_code} {answer.text}")
        except httpx.TransportError:
            pass
        if time.monotonic() > end:
            raise RuntimeError(f"{path}: no answer in {PATIENCE:.0f} seconds")
        run.repeated += 1
        await asyncio.sleep(0.3)


async def vote_on_all(run: Run, number: int, pause: float) -> None:
    """One student: joins and votes on every pair."""
    chance, name = random.Random(number), f"client {number}"
    place = httpx.AsyncHTTPTransport(local_address=f"127.1.{number // 200}.{number % 200 + 1}")
    address = f"http://127.0.0.1:{run.port}"
    async with httpx.AsyncClient(
        transport=place, base_url=address, headers={"origin": address}, timeout=30
    ) as client:
        joined = {"code": run.code, "name": name, "key": secrets.token_hex(16)}
        await ask(run, client, "/api/join", joined)
        for row in (await ask(run, client, "/api/pairs"))["pairs"]:
            await asyncio.sleep(chance.uniform(0, 2 * pause))
            choice = chance.choice(["a", "b", "tie", "skip"])
            data = {"item": row["item"], "choice": choice, "key": secrets.token_hex(16)}
            await ask(run, client, "/api/vote", data)
            run.cast[name, row["item"]] = choice


async def kill_at(run: Run) -> None:
    """Kill the server at the given shares of the votes, and start it again."""
    for share in run.kills:
        while len(run.cast) < share * run.goal:
            await asyncio.sleep(0.02)
        run.changes += 1
        run.server.send_signal(signal.SIGKILL)
        run.server.wait()
        await asyncio.to_thread(start, run)
        run.changes += 1


async def everybody(run: Run, clients: int, pause: float) -> None:
    """All clients at once, and the kills."""
    killer = asyncio.create_task(kill_at(run))
    await asyncio.gather(*(vote_on_all(run, number, pause) for number in range(clients)))
    await killer


def measure(clients: int, folder: Path, url: str = "", pause: float = 0.5) -> dict[str, object]:
    """Votes of `clients` students with two kills: what was lost, what came twice, the latency."""
    rows = [
        {"question": f"Câu {n}?", "first": "Một. " * 20, "second": "Hai. " * 20}
        for n in range(ITEMS)
    ]
    write_pairs(folder / "pairs.json", CAMPAIGN, rows)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = url or f"sqlite:///{folder}/votes.sqlite"
    run = Run(url, folder, port, goal=clients * ITEMS)
    start(run)
    try:
        asyncio.run(everybody(run, clients, pause))
    finally:
        run.server.send_signal(signal.SIGKILL)
        run.server.wait()
    votes = open_store(url).votes(campaign=CAMPAIGN, source="class", status=None)
    stored = {(vote.annotator, vote.item): vote.choice for vote in votes}
    p50, p95, p99 = np.quantile(run.seconds, [0.5, 0.95, 0.99]) * 1000
    calm = np.quantile(run.unhindered, 0.95) * 1000
    return {
        "clients": clients,
        "votes": len(run.cast),
        "kills": len(run.kills),
        "lost": sum(stored.get(key) != choice for key, choice in run.cast.items()),
        "double": len(votes) - len(stored),
        "sent_again": run.repeated,
        "p50_ms": round(p50, 1),
        "p95_ms": round(p95, 1),
        "p99_ms": round(p99, 1),
        "met_a_kill": len(run.seconds) - len(run.unhindered),
        "others_p95_ms": round(calm, 1),
        "store": url.partition(":")[0].partition("+")[0],
    }


def main() -> None:
    """Measure each number of clients, and write benchmarks/classroom.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, nargs="*", default=[30, 200])
    parser.add_argument("--url", default="", help="an empty database; default: SQLite")
    parser.add_argument("--pause", type=float, default=2.0, help="mean seconds before each vote")
    arguments = parser.parse_args()
    path = BENCHMARKS / "classroom.json"
    known = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else []
    for clients in arguments.clients:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(clients, Path(folder), arguments.url, arguments.pause)
        found |= {
            "pause_s": arguments.pause,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "load_of_the_machine": round(os.getloadavg()[0], 1),
        }
        print(json.dumps(found))
        same = ("clients", "store")
        known = [row for row in known if any(row[name] != found[name] for name in same)]
        known.append(found)
        path.write_text(json.dumps({"runs": known}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
