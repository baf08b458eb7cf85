"""Let a class vote on telephones: a page on this laptop's address, without internet."""

import argparse
import asyncio
import logging
import os
import socket
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from tools.label import pick
from utils.classroom import Comparisons, Desk, Job, addresses, build, open_room, saved_models
from utils.course import artifacts, profiles
from utils.course.errors import CourseError
from utils.votes import open_store, read_pairs
from utils.votes.pairs import Pair
from utils.votes.schema import PROMPTS
from utils.votes.store import VoteStore

SAMPLE, SAMPLE_PAIRS = "sample", 20
PREFERRED = ("llama-dpo", "llama-sft", "llama-base", "gpt2-dpo", "gpt2-sft", "t5-dpo", "t5-sft")
PORTS = range(8000, 8050)


def options() -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python tools/run.py class")
    parser.add_argument("--campaign", default="", help="default: the latest one in the store")
    parser.add_argument("--import", dest="read", metavar="FILE", help="add the pairs of this file")
    parser.add_argument(
        "--local", action="store_true", help="only this machine, without a code: to try the page"
    )
    parser.add_argument("--address", help="this laptop's address for the students' telephones")
    parser.add_argument("--port", type=int, help="default: the first free one from 8000")
    parser.add_argument("--models", help="two saved models for the students' own prompts: A,B")
    parser.add_argument("--no-prompts", action="store_true", help="students write no prompts")
    return parser.parse_args()


def sample_pairs() -> list[Pair]:
    """Pairs of the shipped data, for a class without a campaign of its own."""
    from utils.data import load_preferences, written

    rows = written(load_preferences(quiet=True)["test"])
    rows = rows.select(range(min(SAMPLE_PAIRS, len(rows))))
    return [
        {
            **{"question": row["question"], "first": row["chosen"], "second": row["rejected"]},
            **{"model_first": "chosen", "model_second": "rejected"},
        }
        for row in rows
    ]


def chosen_campaign(store: VoteStore, wanted: str, file: str | None) -> str:
    """The campaign to vote on; the shipped sample if the store has none."""
    if file:
        name, pairs = read_pairs(file)
        wanted = wanted or name
        store.add_pairs(wanted, pairs)
    names = [campaign.name for campaign in store.campaigns() if campaign.pairs]
    if not wanted and all(name.endswith(PROMPTS) for name in names):
        store.add_pairs(SAMPLE, sample_pairs())
        return SAMPLE
    return pick(names, wanted)


def two_models(shelf: artifacts.Shelf, wanted: str | None) -> tuple[str, str] | None:
    """The keys of the two models that answer the students' prompts; None if there are not two."""
    from utils.models.saved import Library

    made = Library(shelf).available
    keys = wanted.split(",") if wanted else [key for key in PREFERRED if key in made][:2]
    if wanted and (len(keys) != 2 or not set(keys) <= set(made)):
        raise CourseError(
            f"--models {wanted} does not name two saved models: use two of {', '.join(made)}."
        )
    return (keys[0], keys[1]) if len(keys) == 2 else None


def free_port(host: str, wanted: int | None) -> int:
    """The wanted port, or the first free one."""
    for port in [wanted] if wanted else PORTS:
        with socket.socket() as probe:
            if os.name == "posix":
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
                return port
            except OSError:
                continue
    raise CourseError(f"Port {wanted or PORTS} is in use or not allowed: choose another --port.")


def describe(desk: Desk, port: int, others: Sequence[str]) -> None:
    """Print the addresses, the code and the teacher's secret."""
    room, here = desk.room, f"http://127.0.0.1:{port}"
    print(f"Campaign: {room.campaign} ({len(room.pairs)} pairs, {room.store})")
    print(f"Students: {desk.address}" + (f"   code: {room.code}" if room.code else ""))
    if others:
        print(f"          (if telephones cannot reach it: --address {' or '.join(others)})")
    print(f"Teacher:  {here}/teacher#{room.new_secret()}   (the secret opens the page once)")
    print(f"Projector: {here}/projector   (in the teacher's browser). Ctrl-C stops the class.")


class Fair(H11Protocol):
    """A connection; one address may hold so many that others still find room.

    A whole class may have one address: a voter's telephone holds one or two connections.
    """

    MOST = 700
    held: ClassVar[Counter] = Counter()

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Count it, and close it at once if its address has too many."""
        super().connection_made(transport)
        self.address = (transport.get_extra_info("peername") or ("?",))[0]
        self.held[self.address] += 1
        if self.held[self.address] > self.MOST:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Count it no longer."""
        self.held[self.address] -= 1
        if not self.held[self.address]:
            del self.held[self.address]
        super().connection_lost(exc)


def main() -> None:
    """Build the page and serve it until Ctrl-C; votes are on disk at every moment."""
    arguments = options()
    profile = profiles.choose()
    if profile.offline:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # hides its CPU warnings
    store, shelf = open_store(), artifacts.shelf(profile.name)
    folder = shelf.folder.parent / "class"
    campaign = chosen_campaign(store, arguments.campaign, arguments.read)
    room = open_room(store, campaign, folder, local=arguments.local)
    host = "127.0.0.1" if arguments.local else "0.0.0.0"  # noqa: S104 - it is what a class needs
    found = [] if arguments.local else addresses()
    address = arguments.address or (found[0] if found else "127.0.0.1")
    port = free_port(host, arguments.port)
    models = None if arguments.no_prompts else two_models(shelf, arguments.models)
    comparisons = Comparisons(saved_models(shelf, models), models) if models else None
    desk = Desk(room, Job(folder / "training"), f"http://{address}:{port}", comparisons)
    describe(desk, port, [each for each in found if each != address])
    try:
        uvicorn.run(
            build(desk),
            host=host,
            port=port,
            http=Fair,
            ws="none",
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,  # a header must not choose the address that rates are counted for
            limit_concurrency=1500,
            timeout_keep_alive=15,
            h11_max_incomplete_event_size=16_384,  # bytes of headers
        )
    finally:
        desk.job.stop()


if __name__ == "__main__":
    try:
        main()
    except CourseError as error:
        sys.exit(str(error))
