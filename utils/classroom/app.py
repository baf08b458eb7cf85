"""The class page: what a student, the projector and the teacher ask of the server.

| page | who | what |
|---|---|---|
| / | everybody who has the code | join, vote, change a vote, write a prompt |
| /projector | the teacher's browser | the code, counts, agreement, disagreement, before and after |
| /teacher | the teacher's browser | accept votes, free names, train, download |

The pages are plain files in `static/`; everything else is JSON. Every request has passed `guarded`.
"""

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

import segno
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from utils.classroom import figures, words
from utils.classroom.comparing import Comparison, Comparisons
from utils.classroom.room import Classroom, own_names
from utils.classroom.security import SESSION_SECONDS, Buckets, Refusal, guarded
from utils.classroom.training import Job
from utils.course.errors import CourseError
from utils.course.language import tr
from utils.votes.pairs import PairError, Shown, campaign_name, shown
from utils.votes.schema import ACCEPTED, CLASS, PROMPTS, REFUSED
from utils.votes.store import CHOICES, Vote

STATIC = Path(__file__).with_name("static")
PAGES = {"/": "student.html", "/projector": "projector.html", "/teacher": "teacher.html"}
FILES = ("class.css", "common.js", "student.js", "projector.js", "teacher.js")
VOTER, TEACHER = "voter", "teacher"  # the cookies
Data = Mapping[str, object]


@dataclass
class Desk:
    """All that the requests of a class share."""

    room: Classroom
    job: Job
    address: str  # the page's address for the students
    comparisons: Comparisons | None = None


def _text(data: Data, name: str) -> str:
    """A field of the request that must be a text."""
    value = data.get(name)
    if not isinstance(value, str):
        raise Refusal(400, "field", f"The request has no text {name!r}.")
    return value


# --- Students ------------------------------------------------------------------------------------


def hello(desk: Desk, request: Request, data: Data) -> Data:
    """Whether this visitor has joined, and what the page may show before that."""
    voter = _voter_or_none(desk, request)
    return {
        "name": desk.room.names.get(voter) if voter else None,
        "campaign": desk.room.campaign if voter else None,
        "code": desk.room.code is not None,
        "prompts": desk.comparisons is not None,
    }


def join(desk: Desk, request: Request, data: Data) -> Response:
    """A name and the code: a cookie that votes in this name."""
    desk.room.check_code(str(data.get("code", "")), request.client.host if request.client else "?")
    key = data.get("key")
    voter, name = desk.room.join(_text(data, "name"), key if isinstance(key, str) else None)
    return _with_cookie(desk, {"name": name}, VOTER, {"voter": voter})


def pairs(desk: Desk, request: Request, data: Data) -> Data:
    """All pairs in the voter's order, with the voter's choices."""
    return {"pairs": desk.room.queue(desk.room.names[_voter(desk, request)])}


def vote(desk: Desk, request: Request, data: Data) -> Data:
    """A vote, which replaces the voter's former one on the item."""
    voter = _voter(desk, request)
    name = desk.room.names[voter]
    if data.get("name", name) != name:  # the sides on the screen are another voter's
        raise Refusal(401, "join", "Another voter has joined in this browser.")
    item, choice, key = (_text(data, name) for name in ("item", "choice", "key"))
    cast = desk.room.vote(voter, item, choice, key)
    return {"item": cast.item, "choice": cast.choice}


def ask(desk: Desk, request: Request, data: Data) -> Data:
    """A prompt for the two models."""
    return {"id": _comparisons(desk).ask(_voter(desk, request), _text(data, "prompt"))}


def answers(desk: Desk, request: Request, data: Data) -> Data:
    """The answers to the voter's prompt, as far as they are written; the models stay hidden."""
    voter = _voter(desk, request)
    found = _comparisons(desk).find(voter, request.path_params["name"])
    a, b = found.sides()
    return {"status": found.status, "a": a, "b": b, "voted": bool(found.choice)}


def vote_on_answers(desk: Desk, request: Request, data: Data) -> Data:
    """A vote on the answers to the voter's own prompt, in a campaign of its own."""
    voter, comparisons = _voter(desk, request), _comparisons(desk)
    found, choice = comparisons.find(voter, request.path_params["name"]), _text(data, "choice")
    if found.status != "done" or choice not in CHOICES:
        raise Refusal(400, "vote", "There is nothing to vote on yet.")
    if found.choice not in ("", choice):  # the page has named the models since
        raise Refusal(409, "voted", "You have voted on these answers.")
    if not found.choice:  # else an answer that got lost is asked for again
        _keep_choice(desk.room, desk.room.names[voter], found, comparisons.models, choice)
        found.choice = choice
    models = comparisons.models[::-1] if found.swapped else comparisons.models
    return {"a": models[0], "b": models[1]}


def _keep_choice(
    room: Classroom, name: str, found: Comparison, models: tuple[str, str], choice: str
) -> None:
    """Store the pair of a prompt, and the vote on it."""
    pair = dict(zip(("first", "second"), found.texts, strict=True))
    pair |= dict(zip(("model_first", "model_second"), models, strict=True))
    pair["question"] = found.prompt
    screen: Shown = shown(pair, found.swapped)
    campaign = campaign_name(f"{room.campaign[:60].strip()}{PROMPTS}")
    room.store.add_pairs(campaign, [pair])
    facts = {"choice": choice, "annotator": name, "source": CLASS, "campaign": campaign}
    room.store.cast(Vote(**vars(screen), **facts, seed=found.seed))


# --- The teacher and the projector ---------------------------------------------------------------


def enter(desk: Desk, request: Request, data: Data) -> Response:
    """The one-time secret from the terminal: the teacher's cookie."""
    address = request.client.host if request.client else "?"
    if desk.room.wrong_codes.empty(address):
        raise Refusal(429, "wait", "Too many wrong secrets: wait a minute.")
    if not desk.room.use_secret(_text(data, "secret")[:200]):
        desk.room.wrong_codes.take(address)
        raise Refusal(403, "secret", "The secret is wrong or has been used.")
    return _with_cookie(desk, {}, TEACHER, {"teacher": "yes"})


def projector(desk: Desk, request: Request, data: Data) -> Data:
    """Everything on the projector."""
    _teacher(desk, request)
    shown_here = {"campaign": desk.room.campaign, "code": desk.room.code, "address": desk.address}
    return {**shown_here, **desk.room.figures(), "training": desk.job.state}


def qr(desk: Desk, request: Request, data: Data) -> Response:
    """The address with the code as an SVG; the code is in the fragment, which no server sees."""
    _teacher(desk, request)
    fragment = f"#{quote(desk.room.code)}" if desk.room.code else ""
    code = segno.make(f"{desk.address}/{fragment}", error="m", micro=False)
    picture = io.BytesIO()
    code.save(picture, kind="svg", border=4, light="#fff", omitsize=True, xmldecl=False)
    return Response(picture.getvalue(), media_type="image/svg+xml")


def overview(desk: Desk, request: Request, data: Data) -> Data:
    """The teacher's table of voters, and the state of the training."""
    _teacher(desk, request)
    room = desk.room
    votes = room.votes()
    accepted = [vote for vote in votes if vote.status == ACCEPTED]
    return {
        "campaign": room.campaign,
        "code": room.code,
        "address": desk.address,
        "pairs": len(room.pairs),
        "voters": figures.voters(list(room.names.values()), votes),
        "accepted": len(accepted),
        "waiting": sum(vote.status == "waiting" for vote in votes),
        "training": desk.job.state,
        "running": desk.job.running,
    }


def decide(desk: Desk, request: Request, data: Data) -> Data:
    """Accept or refuse the waiting votes of some voters, or of all."""
    _teacher(desk, request)
    status, names = _text(data, "status"), data.get("names")
    if status not in (ACCEPTED, REFUSED):
        raise Refusal(400, "status", "Votes can be accepted or refused.")
    if names is not None and not (
        isinstance(names, list) and all(isinstance(name, str) for name in names)
    ):
        raise Refusal(400, "names", "The names are a list of texts.")
    changed = desk.room.store.decide(status, desk.room.campaign, annotators=names, source=CLASS)
    return {"changed": changed}


def free(desk: Desk, request: Request, data: Data) -> Data:
    """Let a voter join again under the same name, for instance with another telephone."""
    _teacher(desk, request)
    desk.room.set_free(_text(data, "name"))
    return {}


def train(desk: Desk, request: Request, data: Data) -> Data:
    """Start DPO on the accepted votes."""
    _teacher(desk, request)
    votes = desk.room.votes(ACCEPTED)
    if not votes:
        raise Refusal(409, "none", "No vote has been accepted: accept votes first.")
    if not desk.job.start(votes):
        raise Refusal(409, "running", "A training is running.")
    return {}


def stop(desk: Desk, request: Request, data: Data) -> Data:
    """Stop the training."""
    _teacher(desk, request)
    desk.job.stop()
    return {}


def invite(desk: Desk, request: Request, data: Data) -> Data:
    """Print another one-time secret in the terminal, for a second teacher or a second browser."""
    _teacher(desk, request)
    secret = desk.room.new_secret()
    desk.room.say(tr("Another secret for the teacher's page: {secret}", secret=secret))
    return {}


def download(desk: Desk, request: Request, data: Data) -> Response:
    """The class's votes as JSON lines, or the campaign's pairs as JSON."""
    _teacher(desk, request)
    if request.url.path.endswith("pairs.json"):
        rows = [dict(pair) for pair in desk.room.pairs]
        text = json.dumps({"campaign": desk.room.campaign, "pairs": rows}, ensure_ascii=False)
    else:
        lines = (json.dumps(asdict(vote), ensure_ascii=False) for vote in desk.room.votes())
        text = "".join(f"{line}\n" for line in lines)
    name = request.url.path.rpartition("/")[2]
    headers = {"content-disposition": f'attachment; filename="{name}"'}
    return Response(text, media_type="application/octet-stream", headers=headers)


# --- Cookies and routes --------------------------------------------------------------------------


def _voter_or_none(desk: Desk, request: Request) -> str | None:
    found = desk.room.signer.read(request.cookies.get(VOTER)) or {}
    voter = found.get("voter")
    return voter if voter in desk.room.names else None


def _voter(desk: Desk, request: Request) -> str:
    """The voter of the cookie, if this voter has not asked too often."""
    voter = _voter_or_none(desk, request)
    if voter is None:
        raise Refusal(401, "join", "Join the class first.")
    if not desk.room.requests.take(voter):
        raise Refusal(429, "wait", "Too many requests: wait a moment.")
    return voter


def _teacher(desk: Desk, request: Request) -> None:
    found = desk.room.signer.read(request.cookies.get(TEACHER)) or {}
    if found.get("teacher") != "yes":
        raise Refusal(401, "teacher", "Open the teacher's page with the secret of the terminal.")


def _comparisons(desk: Desk) -> Comparisons:
    if desk.comparisons is None:
        raise Refusal(404, "models", "There are no two models to compare.")
    return desk.comparisons


def _with_cookie(desk: Desk, answer: Data, name: str, values: Mapping[str, str]) -> Response:
    response = JSONResponse(answer)
    options = {"httponly": True, "samesite": "strict", "max_age": SESSION_SECONDS, "path": "/"}
    response.set_cookie(name, desk.room.signer.sign(values), **options)
    return response


Work = Callable[[Desk, Request, Data], Data | Response]


def _answering(desk: Desk, work: Work) -> Callable[[Request], Response]:
    """A handler that reads JSON, works in a thread, and turns errors into JSON."""

    async def handler(request: Request) -> Response:
        try:
            data: Data = {}
            if request.method == "POST":
                data = _parsed(await request.body())
            found = await run_in_threadpool(work, desk, request, data)
            return found if isinstance(found, Response) else JSONResponse(found)
        except Refusal as refusal:
            return refusal.response()
        except (CourseError, KeyError) as error:  # the store cannot be reached; a name was freed
            known = isinstance(error, CourseError)
            sentence = str(error) if known else tr("Join the class again.")
            status = 400 if isinstance(error, PairError) else 503
            return Refusal(status, "store", sentence).response()

    return handler


def _parsed(body: bytes) -> Data:
    try:
        data = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise Refusal(400, "json", "The request is not a JSON object.")
    return data


GETS: Mapping[str, Work] = {
    "/api/hello": hello,
    "/api/pairs": pairs,
    "/api/answers/{name}": answers,
    "/api/projector": projector,
    "/api/teacher": overview,
    "/qr.svg": qr,
    "/votes.jsonl": download,
    "/pairs.json": download,
}
POSTS: Mapping[str, Work] = {
    "/api/join": join,
    "/api/vote": vote,
    "/api/ask": ask,
    "/api/answers/{name}/vote": vote_on_answers,
    "/api/enter": enter,
    "/api/decide": decide,
    "/api/free": free,
    "/api/train": train,
    "/api/stop": stop,
    "/api/invite": invite,
}


def _file(name: str) -> Callable[[Request], Response]:
    async def handler(request: Request) -> Response:
        return FileResponse(STATIC / name)

    return handler


async def _words(request: Request) -> Response:
    """The pages' words in both languages, from the course's catalogue."""
    return Response(words.script(), media_type="text/javascript")


def build(desk: Desk, busy: Buckets | None = None) -> Starlette:
    """The page of a class; `busy` limits one address, which a whole class may share."""
    routes = [Route(path, _file(name)) for path, name in PAGES.items()]
    routes += [Route(f"/static/{name}", _file(name)) for name in FILES]
    routes += [Route("/static/words.js", _words)]
    routes += [Route(path, _answering(desk, work)) for path, work in GETS.items()]
    routes += [
        Route(path, _answering(desk, work), methods=["POST"]) for path, work in POSTS.items()
    ]
    chosen = urlsplit(desk.address).hostname or "localhost"  # by the teacher
    checks = {"names": own_names() | {chosen}, "local": desk.room.code is None}
    busy = busy or Buckets(rate=100, burst=500)
    return Starlette(routes=routes, middleware=[Middleware(guarded, **checks, busy=busy)])
