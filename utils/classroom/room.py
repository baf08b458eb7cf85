"""The state of one class: its campaign, its join code, its voters and its teacher."""

import hashlib
import hmac
import json
import random
import secrets
import socket
import threading
import time
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from utils.classroom.figures import Figures, figures
from utils.classroom.security import Buckets, Refusal, Signer
from utils.votes.files import write_whole
from utils.votes.pairs import Pair, Shown, item_of, shown, tidy
from utils.votes.schema import CLASS
from utils.votes.session import SIMULATED
from utils.votes.store import CHOICES, Vote, VoteStore

LETTERS = "ABCDEFGHJKMNPQRSTUVWXYZ"  # without I, L and O, which look like 1 and 0
CODE_LENGTH = 6
MAX_NAME = 30  # characters
MAX_VOTERS = 300
FRESH = 1.5  # seconds for which the projector's figures are used again


def new_code() -> str:
    """A join code of six letters: 148 million possibilities."""
    return "".join(secrets.choice(LETTERS) for _ in range(CODE_LENGTH))


def tidy_name(name: str) -> str:
    """A voter's name: NFC, single spaces, no control characters; a Refusal if it cannot be used."""
    if len(name) > 4 * MAX_NAME:  # normalising may be slow for a long text
        raise Refusal(400, "name", f"A name has at most {MAX_NAME} characters.")
    name = tidy(name)
    hidden = any(unicodedata.category(letter)[0] == "C" for letter in name)
    if not 1 <= len(name) <= MAX_NAME or hidden or name.casefold().startswith(SIMULATED):
        raise Refusal(400, "name", f"A name has 1 to {MAX_NAME} visible characters.")
    return name


@dataclass
class Classroom:
    """One campaign that a class votes on; all votes and voters are in the store."""

    store: VoteStore
    campaign: str
    code: str | None  # None: no code, and only this machine is answered
    signer: Signer
    say: Callable[[str], None] = print  # writes to the teacher's terminal
    wrong_codes: Buckets = field(default_factory=lambda: Buckets(rate=1 / 6, burst=10))
    requests: Buckets = field(default_factory=lambda: Buckets(rate=5, burst=30))

    def __post_init__(self) -> None:
        self.lock = threading.Lock()
        self.reading_names = threading.Lock()
        self.secrets: set[str] = set()  # the teacher's, each can be used once
        self.pairs: Sequence[Pair] = self.store.pairs(self.campaign)
        self.by_item = {item_of(pair): pair for pair in self.pairs}
        self.read_names()
        self._figures: tuple[float, Figures] | None = None

    # --- Who is there ----------------------------------------------------------------------------

    def new_secret(self) -> str:
        """A secret that opens the teacher's page once."""
        secret = secrets.token_urlsafe(18)
        self.secrets.add(secret)
        return secret

    def use_secret(self, secret: str) -> bool:
        """Whether this is a secret of the teacher; it is used up."""
        with self.lock:
            for known in list(self.secrets):
                if hmac.compare_digest(known.encode(), secret.encode("utf-8", "replace")):
                    self.secrets.remove(known)
                    return True
        return False

    def check_code(self, code: str, address: str) -> None:
        """A Refusal if the code is wrong, or after many wrong ones from this address."""
        if self.code is None:
            return
        if self.wrong_codes.empty(address):
            raise Refusal(429, "wait", "Too many wrong codes: wait a minute.")
        typed = "".join(code[:40].split()).upper().encode("utf-8", "replace")
        if not hmac.compare_digest(typed, self.code.encode()):
            self.wrong_codes.take(address)
            raise Refusal(403, "code", "This is not the code on the projector.")

    def read_names(self) -> None:
        """Read the voters' names again.

        Two students may join at one moment: the lock keeps an older list from replacing a newer.
        """
        with self.reading_names:
            self.names = self.store.voters(self.campaign)

    def join(self, name: str, key: str | None = None) -> tuple[str, str]:
        """A new voter's id and name; a Refusal if the name is taken.

        `key` is the page's own secret for this voter: if the answer is lost, for instance because
        the server was killed, the page joins again with it.
        """
        name = tidy_name(name)
        known = None
        if key is not None and 16 <= len(key) <= 64:
            secret = f"{self.campaign} {name.casefold()} {key}".encode("utf-8", "replace")
            known = hashlib.sha256(secret).hexdigest()[:32]
        here = {each.casefold() for each in self.names.values()}  # they may join once more
        if len(here) >= MAX_VOTERS and name.casefold() not in here:
            raise Refusal(403, "full", f"The class is full: {MAX_VOTERS} voters.")
        voter = self.store.join(self.campaign, name, known)
        if voter is None:
            raise Refusal(409, "taken", "Somebody has this name: choose another one.")
        self.read_names()
        return voter, self.names[voter]

    def set_free(self, name: str) -> None:
        """Let a voter who lost the cookie join again under the same name."""
        self.store.set_free(self.campaign, name)
        self.read_names()

    # --- Votes -----------------------------------------------------------------------------------

    def screen(self, name: str, pair: Pair) -> Shown:
        """The pair with the sides that this voter sees, every time the same ones."""
        chance = random.Random(f"{self.campaign} {name} {item_of(pair)}")
        return shown(pair, chance.random() < 0.5)

    def queue(self, name: str) -> list[dict[str, str | None]]:
        """All pairs in this voter's order, with the voter's choice; the models stay hidden."""
        votes = self.store.votes(name, campaign=self.campaign, source=CLASS, status=None)
        choices = {vote.item: vote.choice for vote in votes}
        order = random.Random(f"{self.campaign} {name}").sample(list(self.pairs), len(self.pairs))
        screens = [self.screen(name, pair) for pair in order]
        return [
            {
                "item": screen.item,
                "question": screen.question,
                "a": screen.answer_a,
                "b": screen.answer_b,
                "choice": choices.get(screen.item),
            }
            for screen in screens
        ]

    def vote(self, voter: str, item: str, choice: str, key: str) -> Vote:
        """Store a choice; it replaces this voter's former choice on the item.

        `key` is the page's own name for the click: if the page sends it again, nothing changes.
        """
        if item not in self.by_item or choice not in CHOICES or not 8 <= len(key) <= 64:
            raise Refusal(400, "vote", "The vote is not on a pair of this campaign.")
        name = self.names[voter]
        vote = Vote(
            **vars(self.screen(name, self.by_item[item])),
            choice=choice,
            annotator=name,
            source=CLASS,
            campaign=self.campaign,
            key=hashlib.sha256(f"{voter} {key}".encode("utf-8", "replace")).hexdigest()[:32],
        )
        return self.store.cast(vote)

    def votes(self, status: str | None = None) -> list[Vote]:
        """The class's votes that stand."""
        return self.store.votes(campaign=self.campaign, source=CLASS, status=status)

    def figures(self) -> Figures:
        """The projector's figures, computed at most once in `FRESH` seconds."""
        with self.lock:
            now = time.monotonic()
            if self._figures is None or now - self._figures[0] > FRESH:
                found = figures(self.pairs, self.votes())
                self._figures = time.monotonic(), {**found, "joined": len(self.names)}
            return self._figures[1]


# --- What outlives a restart ---------------------------------------------------------------------


def open_room(
    store: VoteStore,
    campaign: str,
    folder: Path,
    *,
    local: bool = False,
    say: Callable[[str], None] = print,
) -> Classroom:
    """The class of a campaign; code and key are in `folder`, so that telephones stay logged in.

    The file can be read only by its owner.
    """
    digest = hashlib.sha256(campaign.encode()).hexdigest()[:12]
    path = folder / f"class-{digest}.json"
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        code, key = kept["code"], bytes.fromhex(kept["key"])
    except (OSError, ValueError, KeyError):
        code, key = new_code(), secrets.token_bytes(32)
        write_whole(path, json.dumps({"code": code, "key": key.hex()}), mode=0o600)
    return Classroom(store, campaign, None if local else code, Signer(key), say)


def addresses() -> list[str]:
    """This laptop's IPv4 addresses in its networks, the one for other networks first."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # a reserved address; no packet is sent
            found.append(probe.getsockname()[0])
        except OSError:
            pass  # no route to other networks: a classroom without internet
    for name, cards in psutil.net_if_addrs().items():
        up = psutil.net_if_stats().get(name)
        found += [c.address for c in cards if c.family == socket.AF_INET and up and up.isup]
    return [each for each in dict.fromkeys(found) if not each.startswith("127.")]


def own_names() -> set[str]:
    """The names under which other machines may reach this one."""
    name = socket.gethostname().lower()
    return {name, f"{name}.local", socket.getfqdn().lower()}
