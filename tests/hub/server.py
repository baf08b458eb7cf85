"""A loopback Hub with the API of huggingface_hub, transformers and datasets, and with faults.

with serve([Repository("vinai/phobert-base", folder)]) as hub:
    ...  # a process started with HF_ENDPOINT=hub.url loads from it
"""

import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

LFS = {".safetensors", ".bin", ".parquet"}  # what the Hub keeps by SHA-256; the rest by git's SHA-1
ACCEPTED, WITHOUT_ACCESS = "hf_accepted", "hf_licence_not_accepted"  # the tokens it knows


@dataclass(frozen=True)
class Repository:
    """One repository with one revision besides its commit."""

    name: str  # owner/name
    folder: Path  # its files
    kind: str = "model"  # or "dataset"
    revision: str = "main"
    gated: bool = False

    @cached_property
    def files(self) -> dict[str, dict]:
        """Path -> what the Hub says about the file."""
        found = {}
        for path in sorted(p for p in self.folder.rglob("*") if p.is_file()):
            content = path.read_bytes()
            git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            entry = {"type": "file", "oid": git, "size": len(content)}
            if path.suffix in LFS:
                digest = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 134}
            name = path.relative_to(self.folder).as_posix()
            found[name] = {**entry, "path": name}
        return found

    @cached_property
    def commit(self) -> str:
        """A commit hash that changes with the files."""
        return hashlib.sha1(json.dumps(self.files).encode()).hexdigest()

    def tree(self, below: str, recursive: bool) -> list[dict] | None:
        """The entries under a folder, None when there is no such folder."""
        prefix = f"{below}/" if below else ""
        inside = {name: e for name, e in self.files.items() if name.startswith(prefix)}
        if below and not inside:
            return None
        folders = set()
        for name in inside:
            parts = name.removeprefix(prefix).split("/")[:-1]
            folders |= {prefix + "/".join(parts[: n + 1]) for n in range(len(parts))}
        if not recursive:
            folders = {name for name in folders if "/" not in name.removeprefix(prefix)}
            inside = {k: e for k, e in inside.items() if "/" not in k.removeprefix(prefix)}
        directories = [
            {"type": "directory", "oid": hashlib.sha1(name.encode()).hexdigest(), "size": 0}
            | {"path": name}
            for name in sorted(folders)
        ]
        return [*directories, *inside.values()]

    def card(self, blobs: bool) -> dict:
        """What /api/models/NAME answers."""
        siblings = []
        for name, entry in self.files.items():
            sibling = {"rfilename": name}
            if blobs:
                sibling |= {"size": entry["size"], "blobId": entry["oid"]}
                if lfs := entry.get("lfs"):
                    sibling["lfs"] = {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": 134}
            siblings.append(sibling)
        return {
            "_id": self.commit[:24],
            "id": self.name,
            "modelId": self.name,
            "sha": self.commit,
            "private": False,
            "disabled": False,
            "gated": "manual" if self.gated else False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": siblings,
        }


@dataclass
class Fault:
    """A fault in the next `times` requests whose paths contain `where`."""

    kind: str  # unavailable (503), cut, flipped, truncated
    where: str = ""
    times: int = 1
    method: str = "GET"


@dataclass
class Hub:
    """A running server with its faults and a list of its requests."""

    repositories: list[Repository]
    server: ThreadingHTTPServer = field(init=False)
    faults: list[Fault] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)  # "GET /api/models/…", in order
    ranges: list[str] = field(default_factory=list)  # Range headers, to see a download resumed
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        """What HF_ENDPOINT must be."""
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def breaks(self, method: str, path: str, *kinds: str) -> str | None:
        """The fault of this request; it counts as used."""
        with self.lock:
            for fault in self.faults:
                if fault.times and fault.kind in kinds and fault.where in path:
                    if method == "HEAD" and fault.kind != "truncated":
                        continue
                    fault.times -= 1
                    return fault.kind
        return None

    def forget(self) -> None:
        """Remove all faults and recorded requests."""
        self.faults.clear(), self.asked.clear(), self.ranges.clear()

    def stop(self) -> None:
        """Stop the server, so that nothing listens on the port any more."""
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        """Nothing on stderr; `hub.asked` remembers."""

    def do_GET(self) -> None:
        self._route()

    def do_HEAD(self) -> None:
        self._route()

    def do_POST(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._route()

    def _send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, answer: object) -> None:
        self._send(200, json.dumps(answer).encode(), Content_Type="application/json")

    def _refuse(self, status: int, code: str | None, message: str) -> None:
        codes = {"X_Error_Code": code} if code else {}
        body = json.dumps({"error": message}).encode()
        self._send(status, body, X_Error_Message=message, Content_Type="application/json", **codes)

    def _token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def _route(self) -> None:
        hub, url = self.hub, urlsplit(self.path)
        with hub.lock:
            hub.asked.append(f"{self.command} {self.path}")
        if hub.breaks(self.command, self.path, "unavailable"):
            return self._refuse(503, None, "Service Unavailable")
        if self._token() not in (None, ACCEPTED, WITHOUT_ACCESS):
            # as the Hub does it, on public repositories too and without an error code
            return self._refuse(401, None, "Invalid credentials in Authorization header")
        parts = url.path.strip("/").split("/")
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        if parts[:2] == ["api", "whoami-v2"]:
            if self._token() is None:
                return self._refuse(401, None, "Invalid username or password.")
            return self._json({"type": "user", "name": "student", "auth": {"type": "access_token"}})
        if parts[0] == "api" and len(parts) > 2:
            kind, (owner, name, *rest) = parts[1].removesuffix("s"), [*parts[2:], ""][:9]
            repository = self._find(kind, f"{owner}/{name}".rstrip("/"))
            return self._api(repository, [p for p in rest if p], query) if repository else None
        kind = "dataset" if parts[0] == "datasets" else "model"
        parts = parts[kind == "dataset" :]
        if "resolve" in parts:
            cut = parts.index("resolve")
            repository = self._find(kind, "/".join(parts[:cut]))
            if repository:
                revision, path = unquote(parts[cut + 1]), "/".join(map(unquote, parts[cut + 2 :]))
                self._resolve(repository, revision, path)
            return None
        return self._refuse(404, None, f"No such page: {url.path}")

    def _find(self, kind: str, name: str) -> Repository | None:
        for repository in self.hub.repositories:
            if (repository.kind, repository.name) == (kind, name):
                return repository
        # without a token the Hub says 401: the repository might be private
        self._refuse(404 if self._token() else 401, "RepoNotFound", "Repository not found")
        return None

    def _closed(self, repository: Repository) -> bool:
        """Whether the gate is closed to this token; if so the answer is sent."""
        if not repository.gated or self._token() == ACCEPTED:
            return False
        status, who = (403, "not in the authorized list") if self._token() else (401, "no token")
        self._refuse(status, "GatedRepo", f"Access to model {repository.name} is restricted: {who}")
        return True

    def _known(self, repository: Repository, revision: str) -> bool:
        if revision in (repository.revision, repository.commit):
            return True
        self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return False

    def _api(self, repository: Repository, rest: list[str], query: dict[str, str]) -> None:
        verb, revision = (rest[0] if rest else "revision"), repository.revision
        if len(rest) > 1:
            revision = unquote(rest[1])
        if verb == "auth-check":
            return None if self._closed(repository) else self._json({})
        if verb == "refs":
            branch = {"name": repository.revision, "targetCommit": repository.commit}
            branch["ref"] = f"refs/heads/{repository.revision}"
            return self._json({"branches": [branch], "converts": [], "tags": []})
        if not self._known(repository, revision):
            return None
        if verb == "revision":
            return self._json(repository.card(blobs="blobs" in query))
        if verb == "tree":
            below = "/".join(map(unquote, rest[2:]))
            entries = repository.tree(below, query.get("recursive", "").lower() == "true")
            if entries is None:
                return self._refuse(404, "EntryNotFound", f"{below} does not exist")
            return self._json(entries)
        if verb == "paths-info":
            wanted = parse_qs(self.body.decode())["paths"]
            entries = {entry["path"]: entry for entry in repository.tree("", recursive=True)}
            return self._json([entries[path] for path in wanted if path in entries])
        return self._refuse(404, None, f"The loopback Hub has no {verb}")

    def _resolve(self, repository: Repository, revision: str, path: str) -> None:
        if self._closed(repository) or not self._known(repository, revision):
            return None
        entry = repository.files.get(path)
        if entry is None:
            message = f"{path} does not exist"
            headers = {"X_Error_Code": "EntryNotFound", "X_Repo_Commit": repository.commit}
            return self._send(404, message.encode(), X_Error_Message=message, **headers)
        content = (repository.folder / path).read_bytes()
        fault = self.hub.breaks(self.command, self.path, "cut", "flipped", "truncated")
        if fault == "flipped":
            middle = len(content) // 2
            flipped = bytes(byte ^ 255 for byte in content[middle : middle + 64])
            content = content[:middle] + flipped + content[middle + 64 :]
        if fault == "truncated":
            content = content[: len(content) // 2]
        etag = entry.get("lfs", entry)["oid"]
        headers = {"ETag": f'"{etag}"', "X_Repo_Commit": repository.commit}
        headers["Accept_Ranges"] = "bytes"
        if "lfs" in entry:
            headers |= {"X_Linked_Etag": f'"{etag}"', "X_Linked_Size": str(len(content))}
        status, total = 200, len(content)
        if wanted := self.headers.get("Range"):
            self.hub.ranges.append(f"{path} {wanted}")
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start = int(first) if first else total - int(last)
            end = min(int(last), total - 1) if first and last else total - 1
            headers["Content_Range"] = f"bytes {start}-{end}/{total}"
            content, status = content[start : end + 1], 206
        if fault == "cut":
            headers["Content_Length"] = str(len(content))
            self._send(status, content[: len(content) // 2], **headers)
            self.close_connection = True
            return self.connection.shutdown(socket.SHUT_RDWR)
        return self._send(status, content, **headers)


@contextmanager
def serve(repositories: list[Repository]) -> Iterator[Hub]:
    """A Hub on a free port of this machine, for the length of the block."""
    hub = Hub(repositories)
    handler = type("Handler", (_Handler,), {"hub": hub})
    hub.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.server.daemon_threads = True
    thread = threading.Thread(target=hub.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.stop()
        thread.join(timeout=5)
