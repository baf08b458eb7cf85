"""Who may send what to the class page: signed cookies, rates, sizes, hosts and origins.

1. Signer: a cookie that only this server can have written.
2. Buckets: how often a visitor may ask.
3. guarded: the checks of every request, before any of it is parsed.
"""

import asyncio
import base64
import hashlib
import hmac
import ipaddress
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 4096  # bytes of a request: a prompt of 1,000 letters, each of at most 4 bytes
MAX_URL = 200  # bytes of a path with its query
MAX_COOKIE = 600  # characters of a signed value
BODY_SECONDS = 10  # for a whole body: a visitor may not hold a connection by sending slowly
SESSION_SECONDS = 12 * 3600
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
}


# --- 1. Cookies ----------------------------------------------------------------------------------


class Signer:
    """Values signed with HMAC-SHA256; a changed, foreign or old value reads as None.

    >>> signer = Signer(b"secret" * 6)
    >>> signer.read(signer.sign({"voter": "1"}))["voter"], signer.read("x.y")
    ('1', None)
    """

    def __init__(self, key: bytes, clock: Callable[[], float] = time.time) -> None:
        self.key, self.clock = key, clock

    def _mark(self, body: bytes) -> str:
        return hmac.new(self.key, body, hashlib.sha256).hexdigest()

    def sign(self, values: Mapping[str, str]) -> str:
        """A cookie's value with these values and the time."""
        text = json.dumps({**values, "at": int(self.clock())})
        body = base64.urlsafe_b64encode(text.encode())
        return f"{body.decode()}.{self._mark(body)}"

    def read(self, cookie: str | None) -> dict | None:
        """The values of a cookie that this server has signed in the last twelve hours."""
        body, dot, mark = (cookie or "")[: MAX_COOKIE + 1].rpartition(".")
        if not dot or len(cookie) > MAX_COOKIE or not (body + mark).isascii():
            return None
        if not hmac.compare_digest(self._mark(body.encode()), mark):
            return None
        values = json.loads(base64.urlsafe_b64decode(body))
        return values if self.clock() - values["at"] < SESSION_SECONDS else None


# --- 2. Rates ------------------------------------------------------------------------------------


class Buckets:
    """At most `burst` requests at once and `rate` per second for each visitor.

    Only the latest `kept` visitors are remembered, so that the memory is bounded.
    """

    def __init__(
        self,
        rate: float,
        burst: float,
        kept: int = 5000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rate, self.burst, self.kept, self.clock = rate, burst, kept, clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def _now(self, who: str) -> tuple[float, float]:
        now = self.clock()
        left, then = self._left.get(who, (self.burst, now))
        return min(self.burst, left + (now - then) * self.rate), now

    def empty(self, who: str) -> bool:
        """Whether this visitor has to wait; it takes nothing."""
        return self._now(who)[0] < 1

    def take(self, who: str) -> bool:
        """Count one request; False if the visitor has to wait."""
        left, now = self._now(who)
        self._left[who] = (left - 1 if left >= 1 else left), now
        self._left.move_to_end(who)
        while len(self._left) > self.kept:
            self._left.popitem(last=False)
        return left >= 1


# --- 3. Every request ----------------------------------------------------------------------------


class Refusal(Exception):
    """A request that is not answered: a status, a word for the page, a sentence."""

    def __init__(self, status: int, word: str, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.word = status, word

    def response(self) -> JSONResponse:
        """The refusal as JSON; the page translates the word."""
        return JSONResponse({"error": self.word, "detail": str(self)}, self.status)


def _host_allowed(host: str, names: Collection[str], local: bool) -> bool:
    """Whether the Host header names this machine: by a number, or by one of its own names.

    A foreign name that leads to this address (DNS rebinding) would make a foreign page same-origin.
    """
    try:
        name = (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:  # such as a bracket that is never closed
        return False
    if local:
        return name in LOOPBACK
    try:
        ipaddress.ip_address(name)
        return True
    except ValueError:
        return name == "localhost" or name in names


def _check(scope: Scope, names: Collection[str], local: bool, busy: Buckets) -> None:
    headers, method = Headers(scope=scope), scope["method"]
    host, origin = headers.get("host", ""), headers.get("origin")
    if not _host_allowed(host, names, local):
        raise Refusal(403, "host", "This page answers only under its own address.")
    if len(scope["path"]) + len(scope["query_string"]) > MAX_URL:
        raise Refusal(414, "size", "The address is too long.")
    if method not in ("GET", "HEAD", "POST"):
        raise Refusal(405, "method", "Only GET and POST are answered.")
    if not busy.take((scope.get("client") or ["?"])[0]):
        raise Refusal(429, "wait", "Too many requests: wait a moment.")
    site = headers.get("sec-fetch-site", "none")
    api = scope["path"].startswith("/api/")
    if origin not in (None, f"{scope['scheme']}://{host}") or (
        api and site not in ("none", "same-origin")
    ):
        raise Refusal(403, "origin", "The request comes from another page.")
    if method == "POST":
        if origin is None:
            raise Refusal(403, "origin", "The request does not say which page it comes from.")
        if headers.get("content-type", "").split(";")[0].strip() != "application/json":
            raise Refusal(415, "type", "Only JSON is read.")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > MAX_BODY:
            raise Refusal(413, "size", f"A request has at most {MAX_BODY} bytes.")


async def _body(receive: Receive) -> bytes:
    """The whole body, at most MAX_BODY bytes; nothing has been parsed before."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refusal(400, "gone", "The visitor has gone.")
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > MAX_BODY:
            raise Refusal(413, "size", f"A request has at most {MAX_BODY} bytes.")
    return body


def guarded(app: ASGIApp, *, names: Collection[str], local: bool, busy: Buckets) -> ASGIApp:
    """The app behind the checks; with `local`, only this machine is answered."""

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008})
        if scope["type"] != "http":
            return await app(scope, receive, send)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name for name, _ in message["headers"]}
                extra = [(k.encode(), v.encode()) for k, v in HEADERS.items()]
                message["headers"] = [
                    *message["headers"],
                    *(header for header in extra if header[0] not in present),
                ]
            await send(message)

        try:
            _check(scope, names, local, busy)
            body = b""
            if scope["method"] == "POST":
                async with asyncio.timeout(BODY_SECONDS):
                    body = await _body(receive)
        except Refusal as refusal:
            return await refusal.response()(scope, receive, send_with_headers)
        except TimeoutError:
            slow = Refusal(408, "slow", "The request arrived too slowly.")
            return await slow.response()(scope, receive, send_with_headers)
        parts = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def replay() -> Message:
            return next(parts, None) or await receive()

        return await app(scope, replay, send_with_headers)

    return guard
