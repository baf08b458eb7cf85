import ast
import dataclasses
import os
from pathlib import Path

import pytest

from utils.course import profiles


def machine(monkeypatch, capability, **environment):
    for name in (profiles.PROFILE_VARIABLE, profiles.CPU_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(profiles, "_capability", lambda: capability)


@pytest.mark.parametrize(
    ("capability", "name", "precision"),
    [
        (None, "lab", "fp32"),
        ((7, 5), "t4", "fp16"),  # a T4 reports bf16 support but emulates it
        ((8, 0), "a100", "bf16"),
        ((9, 0), "a100", "bf16"),
    ],
)
def test_hardware_chooses(monkeypatch, capability, name, precision):
    machine(monkeypatch, capability)
    profile = profiles.choose()
    assert (profile.name, profile.precision) == (name, precision)


def test_the_environment_variable_overrides_the_hardware(monkeypatch):
    machine(monkeypatch, (9, 0), COURSE_PROFILE="lab")
    assert profiles.choose().device == "cpu"


def test_an_impossible_profile_is_refused_in_a_sentence(monkeypatch):
    machine(monkeypatch, None, COURSE_PROFILE="t4")
    with pytest.raises(profiles.ProfileError, match="COURSE_ALLOW_CPU=1"):
        profiles.choose()
    machine(monkeypatch, (7, 5), COURSE_PROFILE="a100")
    with pytest.raises(profiles.ProfileError, match=r"capability 7\.5"):
        profiles.choose()
    machine(monkeypatch, None, COURSE_PROFILE="h100")
    with pytest.raises(profiles.ProfileError, match="lab, t4, a100"):
        profiles.choose()


def test_cpu_may_be_allowed(monkeypatch):
    machine(monkeypatch, None, COURSE_PROFILE="t4", COURSE_ALLOW_CPU="1")
    profile = profiles.choose()
    assert (profile.device, profile.precision) == ("cpu", "fp32")
    assert profile.reward_model == profiles.TABLE["t4"].reward_model


def test_every_profile_fills_the_whole_table():
    for name, profile in profiles.TABLE.items():
        assert profile.name == name
        assert all(getattr(profile, f.name) is not None for f in dataclasses.fields(profile))


@pytest.mark.parametrize("profile", profiles.TABLE.values(), ids=profiles.TABLE)
def test_the_three_ways_read_each_of_their_rows_once(profile):
    """Then ORPO, on the rows of SFT and DPO, reads as many chosen answers as both together."""
    assert profile.sft.epochs == profile.dpo.epochs == profile.orpo.epochs == 1


@pytest.mark.parametrize(("gpus", "named"), [(2, "CUDA_VISIBLE_DEVICES=0"), (1, None)])
def test_several_gpus_are_refused_with_the_way_out(gpus, named, monkeypatch):
    monkeypatch.delenv(profiles.PROFILE_VARIABLE, raising=False)
    monkeypatch.setattr(profiles, "_capability", lambda: (7, 5))
    monkeypatch.setattr(profiles, "_gpus", lambda: gpus)
    if named:
        with pytest.raises(profiles.ProfileError, match=named):
            profiles.choose()
    else:
        assert profiles.choose().name == "t4"


def test_a_notebook_shows_cuda_one_gpu_unless_the_user_chose(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    profiles.use_one_gpu()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    profiles.use_one_gpu()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"


@pytest.mark.parametrize("name", profiles.TABLE)
def test_a_quick_profile_has_fewer_rows_and_a_name_of_its_own(name):
    whole, quick = profiles.TABLE[name], profiles.quick(profiles.TABLE[name])
    assert quick.name == f"{name}-quick"
    for stage, field in (("sft", "rows"), ("dpo", "rows"), ("ppo", "updates")):
        fewer, all_of_them = (getattr(getattr(p, stage), field) for p in (quick, whole))
        assert fewer < all_of_them
    assert quick.ppo.batch_size % quick.ppo.minibatch_size == 0
    assert quick.sft.learning_rate == whole.sft.learning_rate


@pytest.mark.parametrize("profile", profiles.TABLE.values(), ids=profiles.TABLE)
def test_an_experiment_on_the_side_reads_no_more_rows_than_the_main_run(profile):
    """The notebooks read these rows once, whatever the accumulation."""
    assert profile.sft.side_rows <= profile.sft.rows * profile.sft.epochs


def rows_of_the_source() -> dict[str, tuple[dict[str, object], set[str]]]:
    """The rows of the table: variable -> its fields, and those of them with a reason beside."""
    source = Path(profiles.__file__).read_text(encoding="utf-8")
    lines, found = source.splitlines(), {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            fields = {field.arg: field for field in node.value.keywords if field.arg}
            reasons = {name for name, f in fields.items() if "  # " in lines[f.end_lineno - 1]}
            found[node.targets[0].id] = (fields, reasons)
    return found


GPU_ROWS = [row for row in rows_of_the_source() if row.startswith(("_GPU_", "_T4_"))]


@pytest.mark.parametrize("name", GPU_ROWS)
def test_a_gpus_row_sets_each_field_and_says_why_where_it_has_the_labs_value(name):
    row = getattr(profiles, name)
    lab = next(
        getattr(profiles.TABLE["lab"], field.name)
        for field in dataclasses.fields(profiles.Profile)
        if type(getattr(profiles.TABLE["lab"], field.name)) is type(row)
    )
    fields, reasons = rows_of_the_source()[name]
    same = {f.name for f in dataclasses.fields(row) if getattr(row, f.name) == getattr(lab, f.name)}
    assert same - reasons == set(), "these have the lab's value: write the reason beside each"
    required = {f.name for f in dataclasses.fields(row) if f.default is dataclasses.MISSING}
    assert required <= set(fields)
