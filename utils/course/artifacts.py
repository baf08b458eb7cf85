"""What a notebook hands to the next: written atomically, checked by hash, found where it lies."""

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from utils.course import colab, hub, notebooks, progress
from utils.course.errors import CourseError
from utils.course.paths import ROOT

MANIFEST = "manifest.json"


class ArtifactError(CourseError, RuntimeError):
    """An artifact that is missing or not what its manifest says."""


@dataclass(frozen=True)
class Shelf:
    """Where artifacts of one profile lie."""

    folder: Path  # artifacts/<profile>
    drive: Path | None = None  # the same on Google Drive, copied to and from
    hub_repo: str | None = None  # owner/name of the user's own repository


def shelf(profile: str) -> Shelf:
    """The local folder (COURSE_ARTIFACTS overrides), Drive if mounted, COURSE_HUB_REPO if named."""
    local = Path(os.environ.get("COURSE_ARTIFACTS") or ROOT / "artifacts")
    copied = colab.DRIVE.parent.is_dir() and local != colab.DRIVE
    drive = colab.DRIVE / profile if copied else None
    return Shelf(local / profile, drive, os.environ.get("COURSE_HUB_REPO"))


def no_space(error: BaseException) -> bool:
    """Whether an error says that the disk is full: Python's, safetensors' or torch's."""
    words = ("No space left on device", "PytorchStreamWriter failed writing")
    return getattr(error, "errno", None) == errno.ENOSPC or any(w in str(error) for w in words)


def content_hash(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _folder_of(name: str, place: Shelf) -> Path:
    """The artifact's folder on the shelf, and never one beside it."""
    if not re.fullmatch(r"[\w-][\w.-]*", name):
        raise ArtifactError(
            f"An artifact cannot be called {name!r}: take letters, digits, '_', '-' and '.' alone, "
            "such as 01_phobert_reward_model."
        )
    return place.folder / name


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)


def fault(folder: Path, inputs: dict[str, str] | None = None) -> str | None:
    """What is wrong with an artifact, or None when every byte is what its manifest says.

    `inputs` are what it must have been made from, for instance the data's fingerprint.
    """
    if not folder.is_dir():
        return "it does not exist"
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        listed: dict[str, dict] = manifest["files"]
    except FileNotFoundError:
        return "it has no manifest, so it was not finished"
    except (ValueError, KeyError, TypeError):
        return "its manifest is damaged"
    present = {p.relative_to(folder).as_posix(): p for p in _files(folder)}
    if missing := sorted(set(listed) - set(present)):
        return f"{missing[0]} is missing"
    if extra := sorted(set(present) - set(listed)):
        return f"{extra[0]} is not in its manifest"
    for name, path in present.items():
        if path.stat().st_size != listed[name]["bytes"]:
            return f"{name} has {path.stat().st_size} bytes instead of {listed[name]['bytes']}"
        if content_hash(path) != listed[name]["sha256"]:
            return f"{name} was altered"
    for key, wanted in (inputs or {}).items():
        if manifest.get("inputs", {}).get(key) != wanted:
            return f"it was made from other {key}"
    return None


def weights_of(folder: Path) -> dict[str, str]:
    """The hashes of all files of a whole artifact but its metrics."""
    listed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    return {name: file["sha256"] for name, file in listed.items() if name != "metrics.json"}


def _swap(new: Path, final: Path, keep: Path | None = None) -> None:
    """Put a finished folder in place; the former one stays until the new one stands.

    Then it goes, or becomes `keep`.
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


def _recover(final: Path) -> None:
    """Undo a swap that was killed between its two renames."""
    former = final.with_name(f".{final.name}.former")
    if former.is_dir() and not final.exists():
        os.replace(former, final)


def _copy(source: Path, final: Path) -> None:
    final.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
    shutil.copytree(source, new, dirs_exist_ok=True)
    _swap(new, final)


@contextmanager
def publish(
    name: str,
    place: Shelf,
    *,
    metrics: dict,
    inputs: dict[str, str] | None = None,
    keep_former: bool = False,
) -> Iterator[Path]:
    """A temporary folder to fill; it becomes the artifact only when the block ends well.

    With `keep_former` the one that it replaces stays beside it as `<name>.former`.

    >>> with publish("01_phobert_reward_model", place, metrics={"accuracy": 0.9}) as folder:
    ...     model.save_pretrained(folder / "model")
    """
    final = _folder_of(name, place)
    place.folder.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=place.folder))
    try:
        yield new
        if pickled := [p.name for p in _files(new) if p.suffix in {".bin", ".pt", ".pth", ".pkl"}]:
            raise ArtifactError(
                f"Artifact {name} holds {pickled[0]}, a pickle that can run code when loaded: "
                "save weights as safetensors."
            )
        (new / "metrics.json").write_text(
            json.dumps(metrics, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        files = {
            p.relative_to(new).as_posix(): {"bytes": p.stat().st_size, "sha256": content_hash(p)}
            for p in _files(new)
        }
        manifest = {"name": name, "inputs": inputs or {}, "files": files}
        (new / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        new.chmod(0o755)
        _swap(new, final, final.with_name(f"{name}.former") if keep_former else None)
    except Exception as error:
        if not (isinstance(error, OSError) or no_space(error)):
            raise
        why = os.strerror(errno.ENOSPC) if no_space(error) else error.strerror
        raise ArtifactError(
            f"Artifact {name} could not be saved ({why}): free some disk space and run "
            "the last cell again; the artifact saved before, if any, is untouched."
        ) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
    if place.drive:
        _copy(final, place.drive / name)


def find(name: str, place: Shelf, inputs: dict[str, str] | None = None) -> tuple[Path | None, str]:
    """The artifact's folder, looked for locally, on Drive, then on the Hub; else why not."""
    final = _folder_of(name, place)
    _recover(final)
    reason = fault(final, inputs)
    if reason is None:
        return final, "found in the local folder"
    if place.drive and fault(place.drive / name, inputs) is None:
        _copy(place.drive / name, final)
        return final, "copied from Drive"
    if place.hub_repo and _fetch_from_hub(name, place, inputs):
        return final, f"fetched from {place.hub_repo}"
    return None, reason


def _fetch_from_hub(name: str, place: Shelf, inputs: dict[str, str] | None) -> bool:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    prefix = f"{place.folder.name}/{name}"
    try:
        snapshot = snapshot_download(place.hub_repo, allow_patterns=f"{prefix}/*")
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        print(f"{place.hub_repo} could not be read ({type(error).__name__}).")
        return False
    if fault(Path(snapshot) / prefix, inputs) is not None:
        return False
    _copy(Path(snapshot) / prefix, place.folder / name)
    return True


def upload(name: str, place: Shelf, repo: str) -> None:
    """Put an artifact into the user's own Hub repository, private unless it exists already."""
    from huggingface_hub import HfApi

    folder, reason = find(name, place)
    if folder is None:
        raise ArtifactError(f"Artifact {name} cannot be uploaded: {reason}; make it first.")
    api = HfApi()
    api.create_repo(repo, private=True, exist_ok=True)
    api.upload_folder(repo_id=repo, folder_path=folder, path_in_repo=f"{place.folder.name}/{name}")


def require(
    name: str,
    place: Shelf,
    *,
    inputs: dict[str, str] | None = None,
    build: Callable[[], None] | None = None,
) -> Path:
    """The artifact's folder; when it is missing or damaged, the notebook that makes it is run.

    `build` overrides how it is made; by default `notebooks/<name>.ipynb` runs headless.
    """
    folder, reason = find(name, place, inputs)
    if folder is None:
        time = notebooks.expected_time(name, place.folder.name)
        print(
            f"Artifact {name}: {reason}. The notebook that makes it is run now ({time}).",
            flush=True,
        )
        (build or (lambda: _run_notebook(name, place)))()
        folder, reason = find(name, place, inputs)
    if folder is None:
        raise ArtifactError(
            f"Artifact {name} is still not there ({reason}): open notebooks/{name}.ipynb and run "
            "all its cells."
        )
    return folder


def _run_notebook(name: str, place: Shelf) -> None:
    bar, shown = None, 0

    def advance(done: int, total: int) -> None:
        nonlocal bar, shown
        bar = bar or progress.bar(f"notebook {name[:2]}", total, "cell")
        bar.update(done - bar.n)
        if done * 4 // total > shown:  # four lines, not one per cell
            shown = done * 4 // total
            print(f"  {name}: {done} of {total} cells", flush=True)

    run = notebooks.execute(
        name,
        on_cell=advance,
        environment={
            "COURSE_ARTIFACTS": str(place.folder.parent),
            "HF_TOKEN": hub.read_token() or "",  # a child process cannot read Colab's secrets
        },
    )
    if bar is not None:
        bar.close()
    if run.error:
        raise ArtifactError(f"notebooks/{name}.ipynb stopped with: {run.error}")
    print(f"  {name}: made in {run.seconds:.0f} s")
