"""What a notebook hands over to the next: saved atomically, checked by hash, found in any store."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from utils.course import colab, hub, notebooks, progress
from utils.course.errors import CourseError
from utils.course.folders import MANIFEST, fault, recover, swap, written_whole
from utils.course.language import tr
from utils.course.paths import ROOT


class ArtifactError(CourseError, RuntimeError):
    """An artifact is missing, or does not match its manifest."""


@dataclass(frozen=True)
class Shelf:
    """The locations of one profile's artifacts."""

    folder: Path  # artifacts/<profile>
    drive: Path | None = None  # a copy of it on Google Drive
    hub_repo: str | None = None  # owner/name of the user's own repository


def shelf(profile: str) -> Shelf:
    """The local folder (or COURSE_ARTIFACTS), Drive if it is mounted, COURSE_HUB_REPO if set."""
    local = Path(os.environ.get("COURSE_ARTIFACTS") or ROOT / "artifacts")
    copied = colab.DRIVE.parent.is_dir() and local != colab.DRIVE
    drive = colab.DRIVE / profile if copied else None
    return Shelf(local / profile, drive, os.environ.get("COURSE_HUB_REPO"))


def _folder_of(name: str, shelf: Shelf) -> Path:
    """The artifact's folder in the shelf's folder, never outside of it."""
    if not re.fullmatch(r"[\w-][\w.-]*", name):
        raise ArtifactError(
            tr(
                "An artifact cannot have the name {name!r}: use only letters, digits, '_', '-' "
                "and '.', for instance 01_phobert_reward_model.",
                name=name,
            )
        )
    return shelf.folder / name


def weights_of(folder: Path) -> dict[str, str]:
    """The hashes of all files of a complete artifact, except its metrics."""
    listed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    return {name: file["sha256"] for name, file in listed.items() if name != "metrics.json"}


def _copy(source: Path, final: Path) -> None:
    final.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
    try:
        shutil.copytree(source, new, dirs_exist_ok=True)
        swap(new, final)
    except OSError as error:  # shutil.Error is one, too
        raise ArtifactError(
            tr(
                "{name} could not be copied to {folder} ({error}): free some space there.",
                name=final.name,
                folder=final.parent,
                error=type(error).__name__,
            )
        ) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


@contextmanager
def publish(
    name: str,
    shelf: Shelf,
    *,
    metrics: dict,
    inputs: dict[str, str] | None = None,
    keep_former: bool = False,
) -> Iterator[Path]:
    """A temporary folder to fill; it becomes the artifact only if the block ends without an error.

    With `keep_former`, the replaced artifact is kept next to it as `<name>.former`.

    >>> with publish("01_phobert_reward_model", shelf, metrics={"accuracy": 0.9}) as folder:
    ...     model.save_pretrained(folder / "model")
    """
    final = _folder_of(name, shelf)
    keep = final.with_name(f"{name}.former") if keep_former else None
    with written_whole(final, tr("Artifact {name}", name=name), inputs=inputs, keep=keep) as new:
        yield new
        (new / "metrics.json").write_text(
            json.dumps(metrics, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    if shelf.drive:
        _copy(final, shelf.drive / name)


def find(name: str, shelf: Shelf, inputs: dict[str, str] | None = None) -> tuple[Path | None, str]:
    """The artifact's folder, searched locally, on Drive, then on the Hub; and where or why not."""
    final = _folder_of(name, shelf)
    recover(final)
    reason = fault(final, inputs)
    if reason is None:
        return final, tr("found in the local folder")
    if shelf.drive and fault(shelf.drive / name, inputs) is None:
        _copy(shelf.drive / name, final)
        return final, tr("copied from Drive")
    if shelf.hub_repo and _fetch_from_hub(name, shelf, inputs):
        return final, tr("fetched from {repository}", repository=shelf.hub_repo)
    return None, reason


def _fetch_from_hub(name: str, shelf: Shelf, inputs: dict[str, str] | None) -> bool:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    prefix = f"{shelf.folder.name}/{name}"
    try:
        snapshot = snapshot_download(shelf.hub_repo, allow_patterns=f"{prefix}/*")
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        print(
            tr(
                "{repository} could not be read ({error}).",
                repository=shelf.hub_repo,
                error=type(error).__name__,
            )
        )
        return False
    if fault(Path(snapshot) / prefix, inputs) is not None:
        return False
    _copy(Path(snapshot) / prefix, shelf.folder / name)
    return True


def require(name: str, shelf: Shelf, *, inputs: dict[str, str] | None = None) -> Path:
    """The artifact's folder; if it is missing or damaged, the notebook that makes it is run."""
    folder, reason = find(name, shelf, inputs)
    if folder is None:
        time = notebooks.expected_time(name, shelf.folder.name)
        print(
            tr(
                "Artifact {name}: {reason}. The notebook that makes it is run now ({time}).",
                name=name,
                reason=reason,
                time=time,
            ),
            flush=True,
        )
        _run_notebook(name, shelf)
        folder, reason = find(name, shelf, inputs)
    if folder is None:
        raise ArtifactError(
            tr(
                "Artifact {name} is still not available ({reason}): open "
                "notebooks/{name}.ipynb and run all its cells.",
                name=name,
                reason=reason,
            )
        )
    return folder


def _run_notebook(name: str, shelf: Shelf) -> None:
    bar, shown = None, 0

    def advance(done: int, total: int) -> None:
        nonlocal bar, shown
        bar = bar or progress.bar(tr("notebook {number}", number=name[:2]), total, tr("cell"))
        bar.update(done - bar.n)
        if done * 4 // total > shown:  # four lines per notebook, not one per cell
            shown = done * 4 // total
            print(
                tr("  {name}: {done} of {total} cells", name=name, done=done, total=total),
                flush=True,
            )

    run = notebooks.execute(
        name,
        on_cell=advance,
        environment={
            "COURSE_ARTIFACTS": str(shelf.folder.parent),
            "HF_TOKEN": hub.read_token() or "",  # a child process cannot read Colab's secrets
        },
    )
    if bar is not None:
        bar.close()
    if run.error:
        raise ArtifactError(
            tr("notebooks/{name}.ipynb stopped with: {error}", name=name, error=run.error)
        )
    print(tr("  {name}: made in {seconds:.0f} s", name=name, seconds=run.seconds))
