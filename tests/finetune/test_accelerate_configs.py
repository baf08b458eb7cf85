"""Accelerate reads the shipped configurations, and two processes train like one.

As a program (`python tests/finetune/test_accelerate_configs.py KIND OUT.json`) it trains a tiny
chat model by sft or dpo with four rows per step, however many processes share them.
"""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.helpers import tiny_ppo
from tests.helpers.launching import finished, launched
from utils.course.paths import ROOT
from utils.finetune.launch import leave

FOLDER = ROOT / "configs" / "accelerate"
CONFIGS = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
ALL = pytest.mark.parametrize("name", CONFIGS)
WORKER, ROWS = Path(__file__), 4  # rows per step
SECONDS = 400  # limit for one program


def main(kind: str, out: Path) -> None:
    from tests.helpers import chat_worker

    torch.set_num_threads(1)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    folder, rows = chat_worker.stand_in(), chat_worker.pairs(6 * ROWS)["train"]
    model, changes = chat_worker.adapted(folder), {"save_strategy": "no"}
    if kind == "dpo":
        chat_worker.shaken(model)
    trainer = chat_worker.MAKERS[kind](
        model,
        folder,
        rows,
        out.parent / f"checkpoints-{out.stem}",
        ROWS // processes,
        1,
        **changes,
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    learned = [p for name, p in model.named_parameters() if ".default." in name]
    if PartialState().is_main_process:
        weights = sum(parameter.double().abs().sum().item() for parameter in learned)
        found = {"losses": losses, "weights": weights, "processes": PartialState().num_processes}
        out.write_text(json.dumps(found))
    # The reducer in the trainer's wrapper must not hold the last reference to the group: it would
    # wait for a thread of gloo that waits for Python's lock.
    del trainer, model, learned
    leave()


# --- What Accelerate reads -----------------------------------------------------------------------


def arguments(name: str, *more: str):
    """The arguments that `accelerate launch --config_file` reads from a configuration."""
    parser = launch_command_parser()
    line = ["--config_file", str(CONFIGS[name]), *more, "script.py"]
    return _validate_launch_command(parser.parse_args(line))[0]


def test_the_four_are_shipped():
    assert set(CONFIGS) == {"ddp", "fsdp", "deepspeed_zero2", "two_nodes"}


@ALL
def test_accelerates_own_loader_reads_it(name):
    config = load_config_from_file(str(CONFIGS[name]))
    kinds = {"fsdp": DistributedType.FSDP, "deepspeed_zero2": DistributedType.DEEPSPEED}
    assert config.distributed_type == kinds.get(name, DistributedType.MULTI_GPU)
    assert config.mixed_precision == "no"  # the profile's precision decides
    assert config.num_machines == (2 if name == "two_nodes" else 1)
    assert config.num_processes % config.num_machines == 0
    assert config.num_processes // config.num_machines >= 2
    assert config.use_cpu is False


@ALL
def test_every_nested_setting_is_one_of_the_launchers(name):
    """Accelerate rejects unknown names at the top level and accepts any nested name."""
    known = set(vars(launch_command_parser().parse_args(["script.py"])))
    config = load_config_from_file(str(CONFIGS[name]))
    nested = {**config.fsdp_config, **config.deepspeed_config}
    assert set(nested) <= known
    assert bool(nested) is (name in ("fsdp", "deepspeed_zero2"))


def test_an_unknown_setting_is_refused(tmp_path):
    text = CONFIGS["ddp"].read_text(encoding="utf-8")
    (tmp_path / "x.yaml").write_text(text + "num_procesess: 2\n", encoding="utf-8")
    with pytest.raises(ValueError, match="num_procesess"):
        load_config_from_file(str(tmp_path / "x.yaml"))


def test_fsdp_shards_weights_as_the_second_version():
    environment = prepare_multi_gpu_env(arguments("fsdp", "--main_process_port", "0"))
    assert environment["ACCELERATE_USE_FSDP"] == "true"
    assert environment["FSDP_VERSION"] == "2"
    assert environment["FSDP_RESHARD_AFTER_FORWARD"] == "true"
    assert environment["FSDP_STATE_DICT_TYPE"] == "FULL_STATE_DICT"
    assert environment["FSDP_ACTIVATION_CHECKPOINTING"] == "false"


def test_zero_2_leaves_weights_whole_and_the_batch_to_the_trainer():
    found = arguments("deepspeed_zero2")
    assert found.use_deepspeed and found.zero_stage == 2
    assert found.gradient_accumulation_steps == found.gradient_clipping == "auto"


def test_two_nodes_share_the_processes_and_find_each_other():
    second = arguments("two_nodes", "--machine_rank", "1", "--main_process_ip", "10.1.2.3")
    prepare_multi_gpu_env(second)
    assert (second.nnodes, second.nproc_per_node, second.node_rank) == ("2", "4", 1)
    assert second.rdzv_endpoint == "10.1.2.3:29500"


# --- Two processes and one -----------------------------------------------------------------------


def run(program: list, *options: str) -> str:
    return finished(launched(program, *options), SECONDS)


def options_of(name: str, *more: str) -> list[str]:
    return ["--config_file", str(CONFIGS[name]), *more]


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_a_chat_stage_on_two_processes_equals_one(tmp_path, kind):
    """Notebooks 03 and 04: 4-bit base, adapter, TRL's trainer; losses and weights of each step."""
    run([WORKER, kind, tmp_path / "one.json"])
    options = options_of("ddp", "--num_processes", "2", "--main_process_port", "0")
    run([WORKER, kind, tmp_path / "two.json"], *options)
    one, two = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("one", "two"))
    assert (one["processes"], two["processes"]) == (1, 2)
    assert len(one["losses"]) == 6
    # The order of sums differs. DPO's losses differ by up to 1.2e-4 here;
    # tests/stages/test_launch.py holds its launched stage to 1e-4.
    near = {"sft": 1e-4, "dpo": 1e-3}[kind]
    assert two["losses"] == pytest.approx(one["losses"], rel=near)
    assert two["weights"] == pytest.approx(one["weights"], rel=near)


def test_ppo_on_two_machines_equals_one(tmp_path):
    """Notebook 02 with one launcher per machine; here both machines are this one."""
    run([tiny_ppo.__file__, tmp_path / "one.json"])
    from accelerate.utils.other import get_free_port

    address = ["--main_process_ip", "127.0.0.1", "--main_process_port", str(get_free_port())]
    machines = [
        launched(
            [tiny_ppo.__file__, tmp_path / "two.json"],
            *options_of("two_nodes", "--num_processes", "2", "--machine_rank", rank, *address),
        )
        for rank in ("0", "1")
    ]
    for machine in machines:
        finished(machine, SECONDS)
    one, two = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("one", "two"))
    assert (one["processes"], two["processes"]) == (1, 2)
    for alone, together in zip(one["history"], two["history"], strict=True):
        for figure in set(alone) - {"seconds"}:
            assert together[figure] == pytest.approx(alone[figure], rel=1e-4, abs=1e-5), figure


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
