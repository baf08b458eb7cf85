"""Models and data from the Hub: downloads with retries, checks of all files, and clear errors."""

import errno
import hashlib
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from utils.course import progress
from utils.course.errors import CourseError
from utils.course.language import tr

if TYPE_CHECKING:
    from datasets import DatasetDict

WAITS = (2.0, 8.0)  # seconds before the second and the third attempt
FILES = {  # the files that are downloaded; weights only as safetensors
    "model": ["*.safetensors", "*.json", "*.txt", "*.model", "*.codes", "*.jinja"],
    "dataset": ["*.parquet", "*.jsonl", "*.json", "*.csv", "README.md"],
}
NOT_NEEDED = ["original/*", "onnx/*"]  # the same weights in other formats
LARGE = 10e6  # bytes; a larger download is announced
PICKLE = "pytorch_model.bin"


class HubError(CourseError, RuntimeError):
    """The Hub refused a request or could not deliver a file."""


class GatedError(HubError):
    """The user has not accepted the licence of this repository."""


class TokenError(HubError):
    """The Hub does not know the token."""


class UnreachableError(HubError):
    """The Hub does not answer, or the connection was lost."""


def read_token() -> str | None:
    """The user's token: Colab's secret HF_TOKEN, the variable HF_TOKEN, or an earlier login."""
    try:
        from google.colab import userdata

        secret = userdata.get("HF_TOKEN")
    except Exception:  # not on Colab, no such secret, access denied, or timeout: all differ
        secret = None
    if secret := (secret or os.environ.get("HF_TOKEN") or "").strip():
        return secret
    from huggingface_hub import get_token

    with warnings.catch_warnings():  # on Colab it requests the secret again, with a warning
        warnings.simplefilter("ignore")
        return get_token()


def _say(sentence: str) -> None:
    print(sentence, flush=True)


def _understood(error: Exception, name: str, token: str | bool) -> HubError | None:
    """The course's error for an error of the Hub's clients; None if it is not one of theirs."""
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", 0)
    if isinstance(error, errors.GatedRepoError):
        who = tr("this token may not read it") if token else tr("there is no token")
        return GatedError(
            tr(
                "{name} is gated and {who}: accept the licence on its page of the Hub and put "
                "a token of that account into the variable (on Colab: the secret) HF_TOKEN.",
                name=name,
                who=who,
            )
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return HubError(tr("{name} has no such revision on the Hub: check its name.", name=name))
    if isinstance(error, errors.RepositoryNotFoundError):
        return HubError(
            tr(
                "The Hub has no {name}: check the name; a private one needs its owner's HF_TOKEN.",
                name=name,
            )
        )
    if status == 401:
        return TokenError(tr("The Hub does not accept the token HF_TOKEN: create a new one there."))
    if status and status not in (408, 429) and status < 500:
        return HubError(
            tr(
                "The Hub refuses {name} (status {status}): check that the token may read it, "
                "or try again later.",
                name=name,
                status=status,
            )
        )
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
        return HubError(
            tr(
                "The disk is full and {name} does not fit: free some space, or set HF_HOME to "
                "a folder on a larger disk and restart.",
                name=name,
            )
        )
    # HTTPError comes from httpx, RuntimeError from hf_xet; JSONDecodeError: a proxy sent a web page
    theirs = (errors.HTTPError, OSError, RuntimeError, json.JSONDecodeError)
    if not isinstance(error, theirs) or isinstance(error, CourseError):
        return None
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    if any(isinstance(cause, errors.OfflineModeIsEnabled) for cause in causes):
        reason = tr("HF_HUB_OFFLINE is set")
    else:
        reason = tr("status {status}", status=status) if status else type(causes[-1]).__name__
    return UnreachableError(
        tr(
            "The Hub did not deliver {name} ({reason}) and the cache has no complete copy: "
            "check the connection and run this cell again.",
            name=name,
            reason=reason,
        )
    )


def _listing(
    repo_id: str, kind: str, revision: str | None, token: str | bool
) -> tuple[str, dict[str, tuple[str, int]]]:
    """The commit, and the digest and size of each file to download, as reported by the Hub."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import filter_repo_objects

    api = HfApi(token=token)
    info = api.repo_info(
        repo_id, repo_type=kind, revision=revision, files_metadata=True, timeout=30
    )
    if info.gated:
        api.auth_check(repo_id, repo_type=kind)
    stated = {
        file.rfilename: (file.lfs.sha256 if file.lfs else file.blob_id, file.size)
        for file in info.siblings
    }
    names = set(filter_repo_objects(stated, allow_patterns=FILES[kind], ignore_patterns=NOT_NEEDED))
    if kind == "model" and not any(name.endswith(".safetensors") for name in names):
        if PICKLE not in stated:
            raise HubError(
                tr(
                    "{repository} has no weights as safetensors: choose another model.",
                    repository=repo_id,
                )
            )
        names.add(PICKLE)  # torch loads it with weights_only, which runs no code
    return info.sha, {name: stated[name] for name in names}


def _digest(path: Path, like: str) -> str:
    """A file's SHA-256 if `like` is one (large files), else git's SHA-1 (small files)."""
    if len(like) == 64:
        digest = hashlib.sha256()
    else:
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _marker(folder: Path) -> Path:
    """The file in the cache that lists a snapshot's checked files with their digests and sizes."""
    return folder.parent.parent / ".verified" / f"{folder.name}.json"


def _known(folder: Path) -> dict[str, list]:
    """File -> digest and size, for the files that were checked before."""
    try:
        return json.loads(_marker(folder).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}


def _damaged(folder: Path, wanted: dict[str, str]) -> list[str]:
    """The files that are missing or whose content does not match their digest."""
    known, faulty = _known(folder), []
    for name, digest in wanted.items():
        path = folder / name
        size = path.stat().st_size if path.exists() else None
        checked = size is not None and known.get(name) == [digest, size]
        if size is None or not (checked or _digest(path, digest) == digest):
            faulty.append(name)
    return sorted(faulty)


def _mark(folder: Path, wanted: dict[str, str]) -> None:
    sizes = {name: [digest, (folder / name).stat().st_size] for name, digest in wanted.items()}
    marker = _marker(folder)
    marker.parent.mkdir(exist_ok=True)
    part = marker.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(sizes), encoding="utf-8")
    os.replace(part, marker)


def _discard(path: Path) -> None:
    """Remove a file of the cache and all that it links to, so that it cannot be used again."""
    while path.is_symlink():
        target = path.parent / os.readlink(path)
        path.unlink()
        path = target
    path.unlink(missing_ok=True)


@contextmanager
def _bars(wanted: bool) -> Iterator[None]:
    """Show the Hub client's progress bars within the block, if the output is live."""
    from huggingface_hub import constants
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    if not (wanted and progress.live()) or constants.HF_HUB_DISABLE_PROGRESS_BARS is not None:
        yield
        return
    enable_progress_bars()
    try:
        yield
    finally:
        disable_progress_bars()


def _download(repo_id: str, kind: str, revision: str | None, token: str | bool) -> Path:
    """Download a snapshot and check every file; a damaged file is downloaded once more."""
    from huggingface_hub import snapshot_download, try_to_load_from_cache

    commit, listed = _listing(repo_id, kind, revision, token)

    def get() -> Path:
        with _bars(sum(absent) > LARGE):
            found = snapshot_download(
                repo_id,
                repo_type=kind,
                revision=revision,
                allow_patterns=sorted(listed),
                token=token,
            )
        if Path(found).name != commit:
            raise OSError(f"{repo_id} was changed during the download")
        return Path(found)

    wanted = {name: digest for name, (digest, _) in listed.items()}
    absent = [
        size
        for name, (_, size) in listed.items()
        if not isinstance(try_to_load_from_cache(repo_id, name, None, commit, kind), str)
    ]
    if sum(absent) > LARGE:
        _say(
            tr(
                "Downloading {repository}, {size:.2f} GB …",
                repository=repo_id,
                size=sum(absent) / 1e9,
            )
        )
    if absent and PICKLE in listed:
        _say(
            tr(
                "{repository} has no safetensors: {file} is read as weights only, no code runs.",
                repository=repo_id,
                file=PICKLE,
            )
        )
    folder = get()
    for last in (False, True):
        if not (damaged := _damaged(folder, wanted)):
            break
        for name in damaged:
            _discard(folder / name)
        if last:
            raise HubError(
                tr(
                    "{file} of {repository} arrived damaged twice and was removed (its content "
                    "does not match the Hub's digest): try another network, or try again later.",
                    file=damaged[0],
                    repository=repo_id,
                )
            )
        _say(
            tr(
                "{file} of {repository} was damaged; downloading it again.",
                file=damaged[0],
                repository=repo_id,
            )
        )
        folder = get()
    _mark(folder, wanted)
    return folder


def _cached(repo_id: str, kind: str, revision: str | None) -> Path | None:
    """A complete snapshot from the cache, checked without the Hub; None if there is none."""
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(
            repo_id,
            repo_type=kind,
            revision=revision,
            allow_patterns=FILES[kind],
            ignore_patterns=NOT_NEEDED,
            local_files_only=True,
        )
    except OSError:
        return None
    folder = Path(found)
    if known := _known(folder):
        wanted = {name: digest for name, (digest, _) in known.items()}
        return None if _damaged(folder, wanted) else folder
    # downloaded by another program: the cache links each file to a blob named by its digest
    linked = {
        path.relative_to(folder).as_posix(): Path(os.readlink(path)).name
        for path in folder.rglob("*")
        if path.is_symlink()
    }
    shards = {
        shard
        for index in folder.glob("*.safetensors.index.json")
        for shard in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    }
    whole = all((folder / name).exists() for name in shards or {"model.safetensors"})
    return folder if kind == "model" and whole and not _damaged(folder, linked) else None


def fetch(
    repo_id: str,
    fallback: str | None = None,
    *,
    kind: str = "model",
    revision: str | None = None,
    token: str | bool | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Path:
    """The folder with a repository's files, downloaded, checked and complete.

    `fallback` is an ungated copy for users without access. Without a network, the cache is used.
    """
    from huggingface_hub import constants

    secret = (read_token() or False) if token is None else token
    again = {"kind": kind, "revision": revision, "sleep": sleep}
    waits = iter(WAITS)
    while True:
        try:
            return _download(repo_id, kind, revision, secret)
        except Exception as error:
            problem = error if isinstance(error, HubError) else _understood(error, repo_id, secret)
            if problem is None:
                raise
        if isinstance(problem, TokenError) and secret:
            _say(tr("The Hub does not accept the token HF_TOKEN; continuing without it."))
            return fetch(repo_id, fallback, token=False, **again)
        if isinstance(problem, GatedError) and fallback:
            reason = str(problem).split(":")[0]
            _say(
                tr(
                    "{reason}; using {fallback} instead; the licence still applies.",
                    reason=reason,
                    fallback=fallback,
                )
            )
            return fetch(fallback, token=secret, **again)
        if not isinstance(problem, UnreachableError):
            raise problem from None
        for name in filter(None, (repo_id, fallback)):
            if folder := _cached(name, kind, revision):
                _say(
                    tr("The Hub does not answer; using the earlier download of {name}.", name=name)
                )
                return folder
        wait = next(waits, None)
        if wait is None or constants.HF_HUB_OFFLINE:
            raise problem from None
        _say(
            tr(
                "The Hub does not deliver {repository}; trying again in {wait:.0f} s.",
                repository=repo_id,
                wait=wait,
            )
        )
        sleep(wait)


def load_hub_dataset(repo_id: str, revision: str | None = None) -> "DatasetDict":
    """`datasets.load_dataset` on files that `fetch` has downloaded and checked."""
    from datasets import load_dataset

    return load_dataset(str(fetch(repo_id, kind="dataset", revision=revision)))


def name_of(folder: Path) -> str:
    """The repository of a folder that `fetch` returned.

    >>> name_of(Path("hub/models--vinai--phobert-base/snapshots/1a2b"))
    'vinai/phobert-base'
    """
    return "/".join(folder.parent.parent.name.split("--")[1:])
