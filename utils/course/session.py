"""The start of every notebook: `course = start("01")`."""

import ctypes
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
from utils.course.language import language, tr

SEED = 20
CONTINUE_VARIABLE = "COURSE_CONTINUE"
REPORTED = ("torch", "transformers", "trl", "peft", "datasets", "underthesea")


@dataclass(frozen=True)
class Course:
    """The objects that any cell of a notebook can need."""

    notebook: str  # file name without .ipynb
    profile: "profiles.Profile"  # noqa: F821 - imported only after the packages are installed
    seed: int
    shelf: "artifacts.Shelf"  # noqa: F821
    started: float = field(default_factory=time.perf_counter)
    keep_checkpoints: bool = False  # True: keep them after the hand-over (a launched training)

    def require(self, name: str, inputs: dict[str, str] | None = None) -> Path:
        """The folder of an earlier notebook's artifact, which is made first if it is missing."""
        from utils.course import artifacts

        folder = artifacts.require(name, self.shelf, inputs=inputs)
        if name != self.notebook:
            self._drop_checkpoints_from_another(name, artifacts.weights_of(folder))
        return folder

    def _drop_checkpoints_from_another(self, name: str, weights: dict[str, str]) -> None:
        """Remove the checkpoints of a training that started from other weights of this artifact."""
        note = Path(self.checkpoints) / "required.json"
        try:
            noted = json.loads(note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            noted = {}
        if noted.get(name, weights) != weights:
            print(
                tr(
                    "{name} was made again: checkpoints that began with the former one are "
                    "removed.",
                    name=name,
                )
            )
            shutil.rmtree(self.checkpoints)
            noted = {}
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps(noted | {name: weights}), encoding="utf-8")

    @property
    def checkpoints(self) -> str:
        """The folder of a training's checkpoints, which is kept until the hand-over."""
        return str(self.shelf.folder / f".{self.notebook}-checkpoints")

    def facts(self) -> dict[str, object]:
        """How a result was made (profile, seed, versions); saved in every metrics.json."""
        import torch

        return {
            "profile": self.profile.name,
            "seed": self.seed,
            "threads": torch.get_num_threads(),  # they change the order of sums and the last digits
            "wall_seconds": round(time.perf_counter() - self.started, 1),
            "peak_memory_mb": round(peak_memory_mb()),
            "python": sys.version.split()[0],
            **{f"{k}_version": v for k, v in colab.installed_versions(REPORTED).items()},
        }

    def adapter_to_start_from(self, first: Path, inputs: dict[str, str]) -> tuple[Path, str]:
        """The adapter from which a training starts, and the reason: `first` by default.

        With COURSE_CONTINUE=1, the training starts from this notebook's own earlier artifact.
        """
        from utils.course import artifacts

        found, _ = artifacts.find(self.notebook, self.shelf, inputs)
        if found is None:
            return first, tr("starting from {first}", first=first.name)
        if os.environ.get(CONTINUE_VARIABLE) == "1":
            return found, tr(
                "continuing from an earlier run's {found} ({variable}=1)",
                found=found.name,
                variable=CONTINUE_VARIABLE,
            )
        return first, (
            tr(
                "{found} of an earlier run exists: this run starts again from {first} and will "
                "keep the old one as {found}.former; to continue from it, set {variable}=1.",
                found=found.name,
                first=first.name,
                variable=CONTINUE_VARIABLE,
            )
        )

    @contextmanager
    def hand_over(
        self,
        metrics: dict[str, float],
        inputs: dict[str, str] | None = None,
        *,
        keep_former: bool = False,
    ) -> Iterator[Path]:
        """A folder to save into, which becomes this notebook's artifact, with a metrics.json."""
        from utils.course import artifacts

        made = {"metrics": {**metrics, **self.facts()}, "inputs": inputs}
        with artifacts.publish(
            self.notebook, self.shelf, keep_former=keep_former, **made
        ) as folder:
            yield folder
        if not self.keep_checkpoints:
            shutil.rmtree(self.checkpoints, ignore_errors=True)
        print(
            tr(
                "Saved artifacts/{profile}/{notebook}:",
                profile=self.shelf.folder.name,
                notebook=self.notebook,
            )
        )
        width = max(map(len, metrics), default=0)
        for name, value in metrics.items():
            print(f"  {name:{width}}  {f'{value:.4g}' if isinstance(value, float) else value}")


def peak_memory_mb() -> float:
    """The peak of GPU memory if there is a GPU, else the peak of resident memory."""
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
    """Seed the random generators of Python, numpy and torch."""
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)


def keep_freed_memory() -> None:
    """On Linux, keep freed memory in the process for the next tensors of a training on a CPU.

    Otherwise glibc gives the memory of large tensors back to the system after each step, and the
    system clears it again for the next step. The peak of memory stays about the same.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, TypeError, OSError):  # Windows, macOS, or another C library
        return
    mallopt(-1, 2**30)  # M_TRIM_THRESHOLD: free bytes at the end of the heap that are kept
    mallopt(-3, 2**25)  # M_MMAP_THRESHOLD: smaller tensors use the heap; 32 MB is glibc's limit


def quiet() -> None:
    """Hide the libraries' warnings and progress bars; errors are still shown."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # notebooks 00 and 05 mention it
    os.environ.setdefault("TQDM_DISABLE", "1")  # the libraries' bars; the course has its own
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    # bitsandbytes' 4-bit product on a CPU; tests/models/test_chat_models.py checks its gradient
    warnings.filterwarnings("ignore", message=".*autograd kernel was not registered")
    # an adapter is saved with the name of its base, which is not a local folder
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
    """Install missing packages, choose the profile, set the seed, and print the banner."""
    language()  # a wrong COURSE_LANG stops here, before packages are installed
    colab.prepare()
    from utils.course import artifacts, notebooks, profiles

    if keep_on_drive:
        colab.keep_on_drive()
    profiles.use_one_gpu()
    profile = profiles.choose()
    if profile.offline:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if profile.device == "cpu":
        keep_freed_memory()
    quiet()
    set_seed(seed)
    course = Course(notebooks.path_of(number).stem, profile, seed, artifacts.shelf(profile.name))
    versions = colab.installed_versions(REPORTED)
    print(
        tr(
            "{notebook} · {profile} · seed {seed}",
            notebook=course.notebook,
            profile=profiles.describe(profile),
            seed=seed,
        )
    )
    print(" · ".join(f"{name} {version}" for name, version in versions.items()))
    return course
