"""Train a stage on several GPUs or machines: run the notebook's own cells without Jupyter.

    python -m utils.finetune.launch 03 --profile t4
    accelerate launch --config_file configs/accelerate/ddp.yaml -m utils.finetune.launch 03

No code is copied from a notebook. `STAGES` lists the cells that a training needs, and each process
runs their code in one namespace, up to and including the training cell. Plots, printed lines and
measurements that the training does not need are left out.

1. In the cells of `together`, all processes work on one training. Every other cell is run by the
   first process, then by the first process of each other machine, then by the other processes. So
   each download is done once per machine, and the other processes find the files.
2. `fit` divides each batch among the processes, so their number does not change the steps.
   Checkpoints are saved in the notebook's own folder under `--output`. A run that was interrupted
   continues from them.
3. After the last step, a single process runs the same cells again. `fit` finds the finished
   training and only loads its complete weights, even if they were sharded over several processes.
   The `with` statement of the notebook's hand-over cell saves the artifact for the next stage.
4. The checkpoints are kept. If the notebook is opened with the same profile and output, its
   training cell also only loads the finished training. The notebook then evaluates it and hands
   over the artifact.
"""

import argparse
import ast
import contextlib
import gc
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from types import CodeType

from utils.course import notebooks, profiles, start
from utils.course.errors import CourseError
from utils.course.language import tr

PATIENCE = timedelta(hours=3)  # time limit for another process's download or artifact


class LaunchError(CourseError, RuntimeError):
    """The stage cannot be trained with the given options."""


@dataclass(frozen=True)
class Stage:
    """The cells of a notebook that make up one training.

    If only some statements of a cell are run, they are selected by the names that they bind:
    `a b` selects the statements that bind a or b, and `-a -b` selects all others.
    """

    cells: dict[str, str]  # id -> statements, in the notebook's order
    together: frozenset[str]  # ids of the cells in which processes communicate
    saving: dict[str, str] = field(default_factory=dict)  # cells for the hand-over, with its `with`
    absent: tuple[str, ...] = ()  # callbacks that only measure
    sharded: bool = False  # whether its trainer can shard one model over the GPUs (FSDP)


STAGES = {
    "01": Stage(
        {
            "01-03": "",
            "01-05": "",
            "01-06": "counts",
            "01-15": "",
            "01-16": "encode",
            "01-18": "to_ids encoded",
            "01-22": "class_weights weights",
            "01-24": "",
            "01-26": "",
            "01-27": "",
        },
        together=frozenset({"01-27"}),
        saving={"01-44": "SentimentReward reward", "01-61": "with"},
    ),
    "02": Stage(
        {
            "02-03": "",
            "02-05": "",
            "02-06": "",
            "02-08": "cut_texts positions room first_words prompts",
            "02-10": "SentimentReward handed_over reward",
            "02-49": "config policy negatives trainer",
            "02-53": "history",
        },
        together=frozenset({"02-06", "02-49", "02-53"}),
        saving={"02-83": "with"},
    ),
    "03": Stage(
        {
            "03-03": "",
            "03-05": "",
            "03-08": "models folder model_name tokenizer",
            "03-19": "get_peft_model base model",
            "03-23": "sft_rows rows",
            "03-24": "",
            "03-25": "held_rows build",
            "03-32": "trainer train_seconds",
        },
        together=frozenset({"03-32"}),
        saving={"03-53": "source with"},
        sharded=True,
    ),
    "04": Stage(
        {
            "04-03": "",
            "04-05": "load_preferences pairs train_pairs test folder source sft",
            "04-07": "",
            "04-15": "",
            "04-16": "unrounded trainer_for",
            "04-23": "build trainer train_seconds",
        },
        together=frozenset({"04-23"}),
        saving={"04-54": "with"},
        absent=("probe",),
        sharded=True,
    ),
    "05": Stage(
        {
            "05-03": "",
            "05-05": "log_odds orpo",
            "05-09": "-test -sft -dpo",
            "05-11": "",
            "05-12": "",
            "05-13": "fresh policy trainer train_seconds",
        },
        together=frozenset({"05-13"}),
        saving={"05-40": "with"},
        sharded=True,
    ),
    "08-t5": Stage(
        {
            "08-03": "",
            "08-05": "",
            "08-07": "",
            "08-12": "replace language_model encoder_decoder texts t5",
            "08-26": "DPOSettings answer_logps collate tokenise dpo_settings",
            "08-31": "",
            "08-32": "",
            "08-38": "Seq2SeqDPOTrainer stopping t5_trainer",
            "08-39": "build t5_dpo_trainer t5_dpo",
        },
        together=frozenset({"08-32", "08-39"}),
    ),
    "08-gpt2": Stage(
        {
            "08-03": "",
            "08-05": "",
            "08-07": "",
            "08-12": "replace language_model texts decoder_only gpt2",
            "08-30": "gpt2_tokenizer cut_columns room limits gpt2_train",
            "08-31": "",
            "08-32": "Dataset",
            "08-34": "SFTConfig chat completions longest build gpt2_sft_trainer gpt2_sft",
            "08-38": "stopping",
            "08-41": "DPOConfig DPOTrainer build gpt2_dpo_trainer gpt2_dpo",
        },
        together=frozenset({"08-34", "08-41"}),
    ),
}


# --- The cells -----------------------------------------------------------------------------------


def bound(statement: ast.stmt) -> set[str]:
    """The names that a statement of a cell binds; `with` for a `with` statement.

    >>> sorted(bound(ast.parse("a, b.c = 1, 2").body[0]))
    ['a', 'b']
    """
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return {statement.name}
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {(alias.asname or alias.name).split(".")[0] for alias in statement.names}
    if isinstance(statement, ast.With):
        return {"with"}
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    nodes = [node for target in targets for node in ast.walk(target)]
    return {node.id for node in nodes if isinstance(node, ast.Name)}


def chosen(source: str, statements: str) -> list[ast.stmt]:
    """The statements of a cell's source that `Stage.cells` selects."""
    body, names = ast.parse(source).body, set(statements.split())
    taken = {name for name in names if not name.startswith("-")}
    left = {name[1:] for name in names if name.startswith("-")}
    known = set().union(*map(bound, body)) if body else set()
    if unknown := sorted((taken | left) - known):
        raise LaunchError(
            tr(
                "A cell that a launched stage needs no longer binds {name!r}: update STAGES in "
                "utils/finetune/launch.py to match the notebook.",
                name=unknown[0],
            )
        )
    kept = [one for one in body if bound(one) & taken] if taken else body
    return [one for one in kept if not bound(one) & left]


def programs(name: str, cells: dict[str, str]) -> Iterator[tuple[str, CodeType]]:
    """The compiled statements of each cell, in the order of the notebook."""
    path = notebooks.path_of(name[:2])
    document = json.loads(path.read_text(encoding="utf-8"))
    sources = {cell["id"]: "".join(cell["source"]) for cell in document["cells"]}
    for cell in cells:
        if cell not in sources:
            raise LaunchError(
                tr(
                    "{notebook} has no cell {cell}: update STAGES in utils/finetune/launch.py to "
                    "match the notebook.",
                    notebook=path.name,
                    cell=cell,
                )
            )
        body = ast.Module(chosen(sources[cell], cells[cell]), type_ignores=[])
        yield cell, compile(body, f"{path.name}, cell {cell}", "exec")


# --- The processes -------------------------------------------------------------------------------


def see_one_gpu() -> None:
    """Make only this process's own GPU visible to it; call this before CUDA is initialised."""
    local, visible = os.environ.get("LOCAL_RANK"), os.environ.get("CUDA_VISIBLE_DEVICES")
    if local is None or visible == "":  # a single process, or the machine's GPUs are hidden
        return
    gpus = visible.split(",") if visible else None
    if gpus and int(local) >= len(gpus):
        raise LaunchError(
            tr(
                "Process {process} of this machine has no GPU: CUDA_VISIBLE_DEVICES={visible} "
                "names only {count}. Start fewer processes with --num_processes.",
                process=local,
                visible=visible,
                count=len(gpus),
            )
        )
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus[int(local)] if gpus else local


def wants_sharding() -> bool:
    """Whether the launcher's configuration asks for FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def join(device: str) -> "PartialState":  # noqa: F821 - accelerate is imported after see_one_gpu
    """Connect this process to the others and return Accelerate's state of it."""
    from accelerate import PartialState

    if device == "cpu" and wants_sharding():
        shard_on_cpu()
    return PartialState(cpu=device == "cpu", timeout=PATIENCE)


def shard_on_cpu() -> None:
    """Let Accelerate shard weights over CPU processes, which torch supports.

    Accelerate reads FSDP's settings only for processes with accelerators, and on a CPU would leave
    the model unsharded without a warning. Transformers creates the state again, so its constructor
    is changed.
    """
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    make = PartialState.__init__

    def made(self: PartialState, *arguments: object, **keywords: object) -> None:
        make(self, *arguments, **keywords)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = made


def in_turn(state: "PartialState", code: CodeType, namespace: dict) -> None:  # noqa: F821
    """Run a cell in the first process, then in the first of each other machine, then the rest."""
    mine = 0 if state.is_main_process else 1 if state.is_local_main_process else 2
    for turn in range(3):
        if turn == mine:
            exec(code, namespace)
        state.wait_for_everyone()


def train(name: str) -> dict[str, object]:
    """Run the stage's cells in every process, and return the names that they define."""
    from transformers import TrainerCallback

    stage = STAGES[name]
    state = join(profiles.choose().device)
    if wants_sharding() and not stage.sharded:
        able = ", ".join(key for key, other in STAGES.items() if other.sharded)
        raise LaunchError(
            tr(
                "Stage {stage} keeps a whole model on every GPU and cannot be sharded: use "
                "ddp.yaml (FSDP works for {able}).",
                stage=name,
                able=able,
            )
        )
    namespace: dict[str, object] = {"__name__": "launched", "course": start(name[:2])}
    namespace |= {callback: TrainerCallback() for callback in stage.absent}
    for cell, code in programs(name, stage.cells):
        if cell in stage.together:
            exec(code, namespace)
        else:
            in_turn(state, code, namespace)
    return namespace


def leave() -> None:
    """Leave the process group: otherwise gloo aborts the process when it exits.

    Objects that hold the process group must be deleted before.
    """
    from accelerate import PartialState

    gc.collect()
    PartialState().destroy_process_group()


# --- The hand-over -------------------------------------------------------------------------------


def seconds_and_steps(found: dict[str, object]) -> dict[str, float]:
    """The duration and the number of steps of the training, from the log in its checkpoints."""
    if "history" in found:  # PPO
        return {
            "train_seconds": sum(update["seconds"] for update in found["history"]),
            "steps": len(found["history"]),
        }
    from utils.finetune.training import training_seconds

    trainer = found["trainer"]
    return {"train_seconds": training_seconds(trainer), "steps": trainer.state.global_step}


def hand_over(name: str) -> None:
    """In a single process: load the finished training, and save what the notebook would save."""
    stage, found = STAGES[name], train(name)
    if not stage.saving:
        print(
            tr(
                "Stage {stage} is trained: run notebook {number} to hand over its artifact.",
                stage=name,
                number=name[:2],
            )
        )
        return
    found["course"] = replace(found["course"], keep_checkpoints=True)
    found["metrics"] = seconds_and_steps(found)
    for _, code in programs(name, stage.saving):
        exec(code, found)


def main(arguments: list[str] | None = None) -> None:
    """Train a stage, under `accelerate launch` or in a single process."""
    parser = argparse.ArgumentParser(prog="python -m utils.finetune.launch")
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--profile", choices=profiles.TABLE, help="default: chosen by the hardware")
    parser.add_argument("--output", help="the folder of artifacts and checkpoints")
    parser.add_argument("--hand-over", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.profile:
        os.environ[profiles.PROFILE_VARIABLE] = options.profile
    if options.output:
        os.environ["COURSE_ARTIFACTS"] = os.path.abspath(options.output)
    os.environ.setdefault("MPLBACKEND", "Agg")
    see_one_gpu()
    if options.hand_over:
        hand_over(options.stage)
        return
    first = int(os.environ.get("RANK", "0")) == 0
    with contextlib.ExitStack() as quiet:
        if not first:
            null = quiet.enter_context(open(os.devnull, "w"))
            quiet.enter_context(contextlib.redirect_stdout(null))
        train(options.stage)
        leave()
    if first:  # a new program replaces this one, which still holds GPU memory
        sys.stdout.flush()
        command = [sys.executable, *sys.orig_argv[1:], "--hand-over"]
        os.execve(sys.executable, command, notebooks.alone(os.environ))


if __name__ == "__main__":
    main()
