"""The program for a rented GPU runs from end to end: here on an emulated T4, at tiny sizes."""

import importlib.metadata
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks import gpu
from tests.gpu.test_inside import emulated
from utils.course import colab, profiles
from utils.course.paths import ROOT


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """A function that runs all three stages at tiny sizes and returns their output."""
    folder = tmp_path_factory.mktemp("gpu")
    more = {"COURSE_CACHE": str(folder), "COURSE_PROFILE": "", "OMP_NUM_THREADS": "1"}

    def run() -> tuple[str, Path]:
        done = subprocess.run(
            [sys.executable, "benchmarks/gpu.py", *"ABC", "--quick", "--out", str(folder / "out")],
            env=emulated("t4", **more),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout, folder / "out"

    return run


@pytest.fixture(scope="module")
def first(command) -> tuple[str, Path]:
    return command()


def run_of(out: Path, stage: str) -> dict:
    (run,) = json.loads((out / f"{stage}.json").read_text(encoding="utf-8"))["runs"]
    return run


def test_what_was_found_names_its_machine(first):
    for stage in "ABC":
        run = run_of(first[1], stage)
        assert (run["device"], run["capability"], run["quick"]) == ("Tesla T4", [7, 5], True)
        assert len(run["commit"]) == 40 or run["commit"].startswith("files ")
        assert run["versions"]["trl"] == importlib.metadata.version("trl") and run["driver"]
        assert all(item["seconds"] >= 0 for item in run["items"].values())


def test_every_check_of_half_precision_passes(first):
    items = run_of(first[1], "A")["items"]
    kinds = {name.rpartition(", ")[0] for name in items}
    kernels = {"fused head", "packed rows", "shared prompt", "four bits", "answers", "samples"}
    assert kinds >= kernels | {"sft steps", "dpo steps", "orpo steps", "ppo updates"}
    assert {name: item for name, item in items.items() if not item.get("passed")} == {}
    for item in items.values():
        for check in item.get("checks", {}).values():
            assert check["difference"] <= check["bound"]
    assert items["sft steps, fp16"]["steps"] == 30
    assert items["triton"] == {"passed": True, "installed": True, "used": True} | {
        name: items["triton"][name] for name in ("seconds", "tries")
    }


def test_no_cell_of_a_notebook_fails(first):
    items = run_of(first[1], "B")["items"]
    (number,) = gpu.QUICK
    found = items[number]
    assert found["finished"] and len(found["cells"]) == found["of"] > 20
    assert [cell for cell in found["cells"] if cell["error"]] == [] and found["errors"] == 0
    peaks = [cell["peak_mb"] for cell in found["cells"]]
    assert max(peaks) == found["peak_mb"] > peaks[0]
    assert any(name.startswith("model ") for name in items)


def test_every_speed_is_a_ratio_of_something_that_ran(first):
    items = run_of(first[1], "C")["items"]
    assert {name.split()[0].rstrip(",") for name in items} == {"sft", "dpo", "ppo", "decoding"}
    for name, item in items.items():
        ratios = [value for what, value in item.items() if what.startswith("ratio_to_")]
        methods = [value for value in item.values() if isinstance(value, dict)]
        assert len(methods) == len(ratios) + 1 >= 2, name
        speeds = [v for m in methods for what, v in m.items() if what.endswith("_per_second")]
        assert min(*ratios, *speeds) > 0, name
    assert {"trl_packing", "trl_padding"} <= set(items["sft tiny, fp16"])


def test_a_second_call_computes_nothing(command, first):
    before = {stage: (first[1] / f"{stage}.json").read_bytes() for stage in "ABC"}
    names = {name for stage in "ABC" for name in run_of(first[1], stage)["items"]}
    printed, out = command()
    models = {name for name in names if name.startswith("model ")}  # no later item needs the models
    assert set(re.findall(r"(?m)^(.+): done before$", printed)) == names - models
    assert {stage: (out / f"{stage}.json").read_bytes() for stage in "ABC"} == before


def test_the_files_name_no_folder_of_this_machine(first):
    for stage in "ABC":
        text = (first[1] / f"{stage}.json").read_text(encoding="utf-8")
        assert str(ROOT) not in text and str(first[1].parent) not in text


# --- The report, without a GPU -------------------------------------------------------------------


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """A function that opens a report of one file; the check of the device is switched off."""
    monkeypatch.setattr(gpu, "device_lives", lambda: True)
    belongs = {"commit": "c", "device": "d", "capability": [8, 0], "quick": True}

    def make(**changes) -> gpu.Report:
        return gpu.Report(tmp_path / "A.json", belongs | changes, {"driver": "none"})

    return make


def failing() -> dict:
    raise ValueError(f"first line\nno such file {ROOT}/utils/losses.py")


def test_an_item_that_fails_is_tried_twice_and_the_last_line_is_kept(fresh, capsys):
    clock, asked = gpu.Clock(time.monotonic() + 60), []
    items = {"bad": failing, "good": lambda: asked.append(1) or {"passed": True}}
    for _ in range(3):
        gpu.in_order(fresh(), items, clock)
    found = fresh().items
    assert found["bad"]["tries"] == 2 and len(asked) == 1
    assert re.fullmatch(
        r"no such file losses\.py \(test_gpu_benchmark\.py:\d+\)", found["bad"]["error"]
    )
    assert "1 with an error (bad)" in fresh().summary()
    assert capsys.readouterr().out.count("bad: done before") == 1


def test_an_item_that_the_time_does_not_suffice_for_was_not_tried(fresh, monkeypatch):
    report = fresh()
    with pytest.raises(gpu.OutOfTime):
        gpu.attempt(report, "late", dict, gpu.Clock(time.monotonic() + 1))

    def slow() -> dict:
        time.sleep(30)

    monkeypatch.setattr(gpu, "ENOUGH", 0.0)
    begin = time.monotonic()
    with pytest.raises(gpu.OutOfTime):
        gpu.attempt(report, "slow", slow, gpu.Clock(begin + 0.2))
    assert time.monotonic() - begin < 10
    assert fresh().items == {}


def test_a_process_that_dies_has_tried(fresh):
    fresh().begin("crash")
    assert not fresh().settled("crash")
    fresh().begin("crash")
    assert fresh().settled("crash")


def test_another_commit_or_device_begins_anew_and_keeps_what_was_found(fresh):
    fresh().keep("item", {"passed": True})
    for changes in ({"commit": "other"}, {"device": "other"}, {"quick": False}):
        assert fresh(**changes).items == {}
        fresh(**changes).keep("item", {"passed": False})
    assert fresh().items["item"]["passed"] is True
    assert len(fresh().runs) == 4


def test_a_notebook_that_was_cut_is_not_settled(fresh):
    fresh().keep("03", {"finished": False, "errors": 0})
    assert not fresh().settled("03")
    fresh().keep("03", {"finished": True, "errors": 2})
    assert fresh().settled("03") and "1 failed (03)" in fresh().summary()


# --- What must travel ----------------------------------------------------------------------------


def closure(roots: list[str]) -> set[str]:
    """The packages and all their dependencies on this machine."""
    found, left = set(), [(root, "") for root in roots]
    while left:
        name, extra = left.pop()
        if (name := canonicalize_name(name)) in found and not extra:
            continue
        found.add(name)
        for line in importlib.metadata.requires(name) or []:
            need = Requirement(line)
            if need.marker is None or need.marker.evaluate({"extra": extra}):
                left += [(need.name, each) for each in need.extras or [""]]
    return found


def test_the_wheels_are_locked_and_nothing_that_they_need_is_left_out():
    locked = colab.locked((ROOT / "requirements.lock").read_text(encoding="utf-8"))
    wheels = {canonicalize_name(name) for name in gpu.WHEELS.split()}
    assert wheels <= {canonicalize_name(name) for name in locked}
    roots = "trl peft bitsandbytes datasets underthesea sacrebleu scikit-learn matplotlib ipykernel"
    roots += " ipywidgets nbclient SQLAlchemy gradio psutil"
    needed = closure(roots.split())
    with_torch = closure(["torch"])
    assert needed - with_torch <= wheels, needed - with_torch - wheels
    assert gpu.missing() == []


def test_without_packaging_every_wheel_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "utils.course.colab", None)
    assert len(gpu.missing()) == len(gpu.WHEELS.split())


def test_every_notebook_of_stage_b_has_its_models():
    from benchmarks import gpu_models, gpu_notebooks

    assert set(gpu.ORDER) == set(gpu_notebooks.NEEDS)
    order = list(gpu.ORDER)
    for notebook, before in gpu_notebooks.AFTER.items():
        assert order.index(before) < order.index(notebook)
    models = {model for needed in gpu_notebooks.NEEDS.values() for model in needed}
    assert models == set(gpu_notebooks.NAMES) == set(gpu_models.KINDS)
    chat = profiles.quick(profiles.TABLE["t4"]).chat  # the profile that stage B runs
    (labelled,) = gpu_notebooks.NEEDS["07"]
    assert chat.labelled.hub_id in gpu_notebooks.NAMES[labelled]


def test_a_llama_with_random_weights_writes_words_and_ends_its_sentences(tmp_path, monkeypatch):
    import transformers

    from benchmarks import gpu_models

    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "cache"))  # an untrained stand-in
    texts = [f"câu số {number} nói về con mèo ." for number in range(200)]
    folder = tmp_path / "llama"
    gpu_models.build("Llama-3.2-1B", texts, folder, tiny=True, device="cpu")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    seen = torch.randint(len(tokenizer), (8, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        chance = model(seen).logits.softmax(-1).mean((0, 1))  # per token of the vocabulary
    assert chance[: len(tokenizer)].sum() > 0.9 and len(chance) > len(tokenizer)
    for token, wanted in ((".", "."), (tokenizer.eos_token, "end")):
        found = float(chance[tokenizer.convert_tokens_to_ids(token)])
        assert gpu_models.WRITTEN[wanted] / 3 < found < 3 * gpu_models.WRITTEN[wanted]
