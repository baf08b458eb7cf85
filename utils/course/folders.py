"""Folders that are saved completely or not at all, with a manifest of every file's hash."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.course.errors import CourseError
from utils.course.language import tr

MANIFEST = "manifest.json"


class FolderError(CourseError, RuntimeError):
    """A folder could not be written, or contains a file that is not allowed."""


def no_space(error: BaseException) -> bool:
    """Whether an error of Python, safetensors or torch means that the disk is full."""
    words = ("No space left on device", "PytorchStreamWriter failed writing")
    return getattr(error, "errno", None) == errno.ENOSPC or any(w in str(error) for w in words)


def content_hash(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: Path) -> list[Path]:
    """All files but the manifest, and those that looking at a folder may leave in it."""
    others = {MANIFEST, ".DS_Store", "Thumbs.db", "desktop.ini"}
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and path.name not in others and ".ipynb_checkpoints" not in path.parts
    )


def fault(folder: Path, inputs: dict[str, str] | None = None) -> str | None:
    """What is wrong with a folder, or None if all its files match the manifest.

    `inputs` identifies what it must have been made from, for instance the hash of the data.
    """
    if not folder.is_dir():
        return tr("it does not exist")
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        listed: dict[str, dict] = manifest["files"]
    except FileNotFoundError:
        return tr("it has no manifest, so it was not finished")
    except (ValueError, KeyError, TypeError):
        return tr("its manifest is damaged")
    present = {p.relative_to(folder).as_posix(): p for p in _files(folder)}
    if missing := sorted(set(listed) - set(present)):
        return tr("{file} is missing", file=missing[0])
    if extra := sorted(set(present) - set(listed)):
        return tr("{file} is not in its manifest", file=extra[0])
    for name, path in present.items():
        if path.stat().st_size != listed[name]["bytes"]:
            return tr(
                "{name} has {found} bytes instead of {listed}",
                name=name,
                found=path.stat().st_size,
                listed=listed[name]["bytes"],
            )
        if content_hash(path) != listed[name]["sha256"]:
            return tr("{name} was altered", name=name)
    for key, wanted in (inputs or {}).items():
        if manifest.get("inputs", {}).get(key) != wanted:
            return tr("it was made from other {key}", key=key)
    return None


def swap(new: Path, final: Path, keep: Path | None = None) -> None:
    """Move a finished folder to its final path, and only then remove the former folder.

    If `keep` is given, the former folder is moved there instead.
    """
    former = final.with_name(f".{final.name}.former")
    shutil.rmtree(former, ignore_errors=True)
    if final.exists():
        os.replace(final, former)
    os.replace(new, final)
    if keep and former.exists():
        shutil.rmtree(keep, ignore_errors=True)
        os.replace(former, keep)
    shutil.rmtree(former, ignore_errors=True)


def recover(final: Path) -> None:
    """Undo a swap that was interrupted between its two renames."""
    former = final.with_name(f".{final.name}.former")
    if former.is_dir() and not final.exists():
        os.replace(former, final)


@contextmanager
def written_whole(
    final: Path, what: str, *, inputs: dict[str, str] | None = None, keep: Path | None = None
) -> Iterator[Path]:
    """A temporary folder to fill; it becomes `final` only if the block ends without an error.

    >>> with written_whole(Path("run/update-000010"), "Checkpoint update-000010") as folder:
    ...     save_file(weights, folder / "weights.safetensors")
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
    try:
        yield new
        if pickled := [p.name for p in _files(new) if p.suffix in {".bin", ".pt", ".pth", ".pkl"}]:
            raise FolderError(
                tr(
                    "{what} contains {file}, a pickle that can run code when it is loaded: save "
                    "weights as safetensors.",
                    what=what,
                    file=pickled[0],
                )
            )
        files = {
            p.relative_to(new).as_posix(): {"bytes": p.stat().st_size, "sha256": content_hash(p)}
            for p in _files(new)
        }
        manifest = {"name": final.name, "inputs": inputs or {}, "files": files}
        (new / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        new.chmod(0o755)
        swap(new, final, keep)
    except Exception as error:
        if not (isinstance(error, OSError) or no_space(error)):
            raise
        why = os.strerror(errno.ENOSPC) if no_space(error) else error.strerror
        raise FolderError(
            tr(
                "{what} could not be saved ({why}): free some disk space and run the last cell "
                "again; files that were saved before are unchanged.",
                what=what,
                why=why,
            )
        ) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
