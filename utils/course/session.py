"""The one door of a notebook: `course = start("01")`."""

import json
import logging
import os
import random
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from utils.course import colab

SEED = 20
CONTINUE_WISH = "COURSE_CONTINUE"
REPORTED = ("torch", "transformers", "trl", "peft", "datasets", "underthesea")


@dataclass(frozen=True)
class Course:
    """What every cell of a notebook may need."""

    notebook: str  # file name without .ipynb
    profile: "profiles.Profile"  # noqa: F821 - imported only once the packages are in place
    seed: int
    place: "artifacts.Shelf"  # noqa: F821
    started: float = field(default_factory=time.perf_counter)
    keep_checkpoints: bool = False  # after the hand-over: a launched training's are still needed

    def require(self, name: str, inputs: dict[str, str] | None = None) -> Path:
        """The folder of an earlier notebook's artifact; made first when it is missing."""
        from utils.course import artifacts

        folder = artifacts.require(name, self.place, inputs=inputs)
        if name != self.notebook:
            self._drop_checkpoints_from_another(name, artifacts.weights_of(folder))
        return folder

    def _drop_checkpoints_from_another(self, name: str, weights: dict[str, str]) -> None:
        """Remove the checkpoints of a training that began at other weights of this artifact."""
        note = Path(self.checkpoints) / "required.json"
        try:
            noted = json.loads(note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            noted = {}
        if noted.get(name, weights) != weights:
            print(f"{name} was made again: a training that began with the former one is removed.")
            shutil.rmtree(self.checkpoints)
            noted = {}
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps(noted | {name: weights}), encoding="utf-8")

    @property
    def checkpoints(self) -> str:
        """A folder for a training's checkpoints, kept until the notebook has handed over."""
        return str(self.place.folder / f".{self.notebook}-checkpoints")

    def facts(self) -> dict[str, object]:
        """Where and when a result was made: goes into every metrics.json."""
        import torch

        return {
            "profile": self.profile.name,
            "seed": self.seed,
            "threads": torch.get_num_threads(),  # sums in another order give other last digits
            "wall_seconds": round(time.perf_counter() - self.started, 1),
            "peak_memory_mb": round(peak_memory_mb()),
            "python": sys.version.split()[0],
            **{f"{k}_version": v for k, v in colab.installed_versions(REPORTED).items()},
        }

    def adapter_to_start_from(self, first: Path, inputs: dict[str, str]) -> tuple[Path, str]:
        """Where a training begins, and why: at `first`, or by choice at this notebook's own result.

        COURSE_CONTINUE=1 chooses to go on from what an earlier run of this notebook handed over.
        """
        from utils.course import artifacts

        found, _ = artifacts.find(self.notebook, self.place, inputs)
        if found is None:
            return first, f"starting from {first.name}"
        if os.environ.get(CONTINUE_WISH) == "1":
            return found, f"going on from an earlier run's {found.name} ({CONTINUE_WISH}=1)"
        return first, (
            f"{found.name} of an earlier run is there: this run starts anew from {first.name} and "
            f"will keep it as {found.name}.former; {CONTINUE_WISH}=1 would go on from it."
        )

    @contextmanager
    def hand_over(
        self,
        metrics: dict[str, float],
        inputs: dict[str, str] | None = None,
        *,
        keep_former: bool = False,
    ) -> Iterator[Path]:
        """A folder to save into; it becomes this notebook's artifact with metrics.json."""
        from utils.course import artifacts

        made = {"metrics": {**metrics, **self.facts()}, "inputs": inputs}
        with artifacts.publish(
            self.notebook, self.place, keep_former=keep_former, **made
        ) as folder:
            yield folder
        if not self.keep_checkpoints:
            shutil.rmtree(self.checkpoints, ignore_errors=True)
        print(f"Saved artifacts/{self.place.folder.name}/{self.notebook}:")
        width = max(map(len, metrics), default=0)
        for name, value in metrics.items():
            print(f"  {name:{width}}  {f'{value:.4g}' if isinstance(value, float) else value}")


def peak_memory_mb() -> float:
    """The peak of resident memory, or of GPU memory where there is one."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return psutil.Process().memory_info().peak_wset / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def set_seed(seed: int) -> None:
    """Python, numpy and torch from one seed."""
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)


def _quiet() -> None:
    """Keep the libraries' chatter out of a lesson; errors still show."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # notebooks 00 and 05 say it in words
    os.environ.setdefault("TQDM_DISABLE", "1")  # bars of libraries; the course has its own
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    # bitsandbytes' 4-bit product on a CPU; tests/models/test_chat_models.py checks its gradient
    warnings.filterwarnings("ignore", message=".*autograd kernel was not registered")
    # an adapter is saved under its base's name, which is no folder to look into
    warnings.filterwarnings("ignore", message="Could not find a config file in")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    import datasets
    import huggingface_hub
    import transformers

    huggingface_hub.utils.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def start(number: str, keep_on_drive: bool = False, *, seed: int = SEED) -> Course:
    """Prepare packages, choose the profile, set the seed, print the banner."""
    colab.prepare()
    from utils.course import artifacts, notebooks, profiles

    if keep_on_drive:
        colab.keep_on_drive()
    profiles.use_one_gpu()
    profile = profiles.choose()
    if profile.offline:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    _quiet()
    set_seed(seed)
    course = Course(notebooks.path_of(number).stem, profile, seed, artifacts.shelf(profile.name))
    versions = colab.installed_versions(REPORTED)
    print(f"{course.notebook} · {profiles.describe(profile)} · seed {seed}")
    print(" · ".join(f"{name} {version}" for name, version in versions.items()))
    return course
