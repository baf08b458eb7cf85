"""Checkpoints of a run: each is saved completely or not at all; only the same run continues it."""

import hashlib
import json
import shutil
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from utils.course import folders
from utils.course.errors import SettingError
from utils.course.language import tr

Parameters = dict[str, nn.Parameter]
HASHED = ("prompts", "parameters", "starting weights")  # a message does not show their hashes


def content_hash(parameters: Iterable[Tensor]) -> str:
    """A hash of weights, the same on every device."""
    digest = hashlib.sha256()
    for parameter in parameters:
        digest.update(parameter.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def run_settings(
    config: dict, prompts: Sequence, parameters: Parameters, start: str
) -> dict[str, object]:
    """The settings that a run must share with a checkpoint in order to continue from it.

    `start` is the hash of the weights from which the run started.
    """
    settings = dict(config)
    del settings["checkpoint_every"]
    if not config["anneal"]:  # a longer run can then continue from a shorter one
        del settings["updates"]
    shapes = {name: list(parameter.shape) for name, parameter in parameters.items()}
    for name, value in {"prompts": prompts, "parameters": shapes}.items():
        settings[name] = hashlib.sha256(json.dumps(value).encode()).hexdigest()
    return settings | {"starting weights": start}


def save(
    folder: Path, state: dict, parameters: Parameters, optimizer: torch.optim.Optimizer
) -> None:
    """Save weights, optimiser moments and `state` as a new checkpoint; keep the newest two."""
    moments = {
        f"{name}.{key}": value.contiguous()
        for name, parameter in parameters.items()
        for key, value in optimizer.state[parameter].items()
    }
    weights = {name: parameter.detach().contiguous() for name, parameter in parameters.items()}
    label = f"update-{state['updates_done']:06}"
    with folders.written_whole(folder / label, tr("Checkpoint {name}", name=label)) as new:
        save_file(weights, new / "weights.safetensors")
        save_file(moments, new / "optimizer.safetensors")
        (new / "state.json").write_text(json.dumps(state), encoding="utf-8")
    found = sorted(folder.glob("update-*"))
    newest = found.index(folder / label)  # later ones are damaged, because `load` skipped them
    for old in [*found[: max(0, newest - 1)], *found[newest + 1 :]]:
        shutil.rmtree(old)


def sweep(folder: Path) -> None:
    """Remove the incomplete folders of saves that were interrupted."""
    for incomplete in folder.glob(".update-*"):
        shutil.rmtree(incomplete)


@torch.no_grad()
def load(
    run_folder: Path,
    settings: dict[str, object],
    parameters: Parameters,
    optimizer: torch.optim.Optimizer,
) -> dict | None:
    """Load the newest complete checkpoint into parameters and optimiser; return its state."""
    for folder in sorted(run_folder.glob("update-*"), reverse=True):
        if fault := folders.fault(folder):
            warnings.warn(
                tr("Checkpoint {name} is skipped: {fault}.", name=folder.name, fault=fault),
                stacklevel=4,
            )
            continue
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        for name, value in settings.items():
            if (saved := state["settings"].get(name)) != value:
                if name in HASHED:
                    raise SettingError(
                        tr(
                            "The checkpoints in {folder} belong to a run with other {name}: make "
                            "the policy and the prompts again as in that run, or give another "
                            "checkpoint_dir.",
                            folder=folder.parent,
                            name=name,
                        )
                    )
                raise SettingError(
                    tr(
                        "The checkpoints in {folder} were made with {name} = {saved!r} and this "
                        "run has {value!r}: restore that value, or give another checkpoint_dir.",
                        folder=folder.parent,
                        name=name,
                        saved=saved,
                        value=value,
                    )
                )
        weights = load_file(folder / "weights.safetensors")
        moments = load_file(folder / "optimizer.safetensors")
        optimizer.state.clear()  # moments of an update that was interrupted
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
            if f"{name}.step" not in moments:  # not trained yet: only the values were
                continue
            optimizer.state[parameter] = {
                key: moments[f"{name}.{key}"].to(parameter.device)
                for key in ("step", "exp_avg", "exp_avg_sq")
            }
        return state
    return None
