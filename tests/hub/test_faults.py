"""Faults of the Hub: each leads to a one-sentence error, a retry or the use of the cache."""

import errno
import hashlib
import json
import random
import re
import shutil
import sys
import types
from pathlib import Path

import pytest

from tests.hub import server
from tests.hub.server import Fault, Repository
from utils.course import hub as ours

GATED, COPY = "meta-llama/Llama-3.2-1B-Instruct", "unsloth/Llama-3.2-1B-Instruct"
GPT2, FEEDBACK = "NlpHUST/gpt2-vietnamese", "uitnlp/vietnamese_students_feedback"
WEIGHTS = "model.safetensors"
PRELUDE = """
import time
waited = []
time.sleep = waited.append  # the Hub's own client waits too
from utils.course import hub
def fetch(*names, **more):
    folder = hub.fetch(*names, sleep=lambda s: print("waits", s), **more)
    print("FOLDER", folder)
    return folder
"""


@pytest.fixture
def fetch(client):
    """Run `fetch` on a new machine."""

    def run(*names: str, then: str = "", **more: str):
        return client(f"{PRELUDE}\nfolder = fetch(*{names!r})\n{then}", **more)

    return run


def folder_of(run) -> Path:
    assert run.returncode == 0, run.stderr[-2000:]
    return Path(re.search(r"FOLDER (.*)", run.stdout).group(1))


def sentence(run) -> str:
    """The last line of a run that failed."""
    assert run.returncode == 1, run.stdout
    return run.stderr.strip().splitlines()[-1]


def same(folder: Path, shelf: list[Repository], name: str, files: list[str] | None = None) -> bool:
    """Whether every file of the shelf arrived, byte for byte."""
    repository = next(r for r in shelf if r.name == name)
    wanted = files or [n for n in repository.files if n != "README.md"]
    return all((folder / n).read_bytes() == (repository.folder / n).read_bytes() for n in wanted)


def half_written(home: Path) -> list[Path]:
    """Blobs of the cache whose content differs from their hash, and incomplete downloads."""
    found = []
    for path in home.glob("hub/*/blobs/*"):
        content = path.read_bytes()
        git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        if path.name not in (git, hashlib.sha256(content).hexdigest()):
            found.append(path)
    return found


@pytest.mark.parametrize(
    "token, why",
    [("", "there is no token"), (server.WITHOUT_ACCESS, "this token may not read it")],
)
def test_a_gated_model_gives_way_to_its_copy(fetch, shelf, token, why):
    run = fetch(GATED, COPY, HF_TOKEN=token)
    assert same(folder_of(run), shelf, COPY)
    message = f"{GATED} is gated and {why}; using {COPY} instead; the licence still applies."
    assert run.stdout.splitlines()[0] == message and run.stderr == ""


def test_who_accepted_the_licence_gets_the_gated_model(fetch, shelf):
    run = fetch(GATED, COPY, HF_TOKEN=server.ACCEPTED)
    folder = folder_of(run)
    assert ours.name_of(folder) == GATED and same(folder, shelf, GATED)
    assert "gated" not in run.stdout


def test_a_gated_model_without_a_copy_says_what_to_do(fetch):
    message = sentence(fetch(GATED))
    assert message.startswith(
        f"utils.course.hub.GatedError: {GATED} is gated and there is no token: accept"
    )
    assert "HF_TOKEN" in message


def test_a_wrong_token_is_named_and_left_aside(fetch, shelf):
    run = fetch(GATED, COPY, HF_TOKEN="hf_wrong")
    assert same(folder_of(run), shelf, COPY)
    first, second, *_ = run.stdout.splitlines()
    assert first == "The Hub does not accept the token HF_TOKEN; continuing without it."
    assert second.startswith(f"{GATED} is gated and there is no token; using {COPY}")
    assert "hf_wrong" not in run.stdout + run.stderr


@pytest.mark.parametrize("token", ["", server.ACCEPTED])
def test_a_missing_repository_is_named(fetch, token):
    message = sentence(fetch("nobody/nothing", HF_TOKEN=token))
    assert message.startswith(
        "utils.course.hub.HubError: The Hub has no nobody/nothing: check the name"
    )


def test_a_missing_revision_is_named(client):
    run = client(f"{PRELUDE}\nfetch({GPT2!r}, revision='v9')")
    assert f"{GPT2} has no such revision" in sentence(run)


@pytest.mark.parametrize("where", ["/api/models", WEIGHTS])
def test_503_twice_then_fine(fetch, hub, shelf, where):
    hub.faults = [Fault("unavailable", where, times=2)]
    run = fetch(GPT2)
    assert same(folder_of(run), shelf, GPT2)
    assert hub.faults[0].times == 0
    if where == "/api/models":
        assert run.stdout.splitlines()[:4] == [
            f"The Hub does not deliver {GPT2}; trying again in 2 s.",
            "waits 2.0",
            f"The Hub does not deliver {GPT2}; trying again in 8 s.",
            "waits 8.0",
        ]


def test_503_for_ever_is_one_sentence_after_three_attempts(fetch, hub):
    hub.faults = [Fault("unavailable", times=10**6)]
    run = fetch(GPT2)
    assert sentence(run).startswith(
        f"utils.course.hub.UnreachableError: The Hub did not deliver {GPT2} (status 503) and the "
        "cache has no complete copy"
    )
    assert len(hub.asked) == 3


def test_frames_of_the_clients_are_not_shown(fetch):
    stack = fetch("nobody/nothing").stderr
    assert "site-packages" not in stack and stack.count("File ") <= 4


def test_a_connection_cut_in_a_small_file_is_tried_again(fetch, hub, shelf):
    hub.faults = [Fault("cut", WEIGHTS)]
    assert same(folder_of(fetch(GPT2)), shelf, GPT2)
    assert hub.faults[0].times == 0


def test_a_connection_cut_in_a_large_file_is_resumed_where_it_broke(fetch, hub, tmp_path):
    large = tmp_path / "large"
    large.mkdir()
    (large / WEIGHTS).write_bytes(random.Random(0).randbytes(50_000_000))
    hub.repositories.append(Repository("some/large", large))
    hub.faults = [Fault("cut", WEIGHTS, times=2)]
    run = fetch("some/large")
    assert same(folder_of(run), hub.repositories, "some/large")
    starts = [int(re.search(r"bytes=(\d+)-", line).group(1)) for line in hub.ranges]
    assert len(starts) == 2 and 0 < starts[0] < starts[1]
    assert "Downloading some/large, 0.05 GB …" in run.stdout


def test_a_connection_cut_for_ever_leaves_nothing_behind(fetch, hub, tmp_path):
    hub.faults = [Fault("cut", WEIGHTS, times=10**6)]
    message = sentence(fetch(GPT2))
    assert message.startswith(
        f"utils.course.hub.UnreachableError: The Hub did not deliver {GPT2} (Remote"
    )
    assert half_written(tmp_path / "home") == []
    hub.stop()
    assert "the cache has no complete copy" in sentence(fetch(GPT2))


@pytest.mark.parametrize("kind, times", [("flipped", 1), ("truncated", 2)])
@pytest.mark.parametrize("name", [WEIGHTS, "tokenizer.json"])
def test_a_damaged_file_is_fetched_again(fetch, hub, shelf, tmp_path, kind, times, name):
    hub.faults = [Fault(kind, name, times)]
    run = fetch(GPT2)
    assert same(folder_of(run), shelf, GPT2)
    assert f"{name} of {GPT2} was damaged; downloading it again." in run.stdout
    assert half_written(tmp_path / "home") == []


def test_a_file_damaged_twice_is_removed_and_never_used(fetch, hub, tmp_path):
    hub.faults = [Fault("flipped", WEIGHTS, times=10**6)]
    assert f"{WEIGHTS} of {GPT2} arrived damaged twice and was removed" in sentence(fetch(GPT2))
    assert half_written(tmp_path / "home") == []
    hub.stop()
    assert "the cache has no complete copy" in sentence(fetch(GPT2))


def test_without_a_network_the_cache_serves(fetch, hub, shelf):
    first = folder_of(fetch(GPT2))
    hub.stop()
    load = "from transformers import AutoModelForCausalLM as A; print(A.from_pretrained(folder))"
    run = fetch(GPT2, then=load)
    assert folder_of(run) == first and "GPT2LMHeadModel" in run.stdout
    assert run.stdout.startswith(
        f"The Hub does not answer; using the earlier download of {GPT2}.\n"
    )
    assert "waits" not in run.stdout


def test_without_a_network_the_copy_serves_that_replaced_a_gated_model(fetch, hub):
    first = folder_of(fetch(GATED, COPY))
    hub.stop()
    assert folder_of(fetch(GATED, COPY)) == first


def test_without_a_network_and_a_cache_one_sentence(fetch, hub):
    hub.stop()
    run = fetch(GPT2)
    assert "the cache has no complete copy: check the connection" in sentence(run)
    assert run.stdout.count("waits") == 2


def test_offline_mode_asks_nothing_and_does_not_wait(fetch, hub):
    run = fetch(GPT2, HF_HUB_OFFLINE="1")
    assert "(HF_HUB_OFFLINE is set)" in sentence(run) and hub.asked == []
    assert "waits" not in run.stdout
    folder = folder_of(fetch(GPT2))
    hub.forget()
    assert folder_of(fetch(GPT2, HF_HUB_OFFLINE="1")) == folder and hub.asked == []


def test_an_unfinished_download_is_not_taken_for_a_copy(fetch, hub):
    hub.faults = [Fault("unavailable", WEIGHTS, times=10**6)]
    assert "status 503" in sentence(fetch(GPT2))
    hub.stop()
    assert "the cache has no complete copy" in sentence(fetch(GPT2))


def test_what_another_program_fetched_is_checked_before_use(client, fetch, hub):
    client(f"import huggingface_hub as h; h.snapshot_download({GPT2!r})")
    hub.stop()
    folder = folder_of(fetch(GPT2))
    blob = (folder / WEIGHTS).resolve()
    blob.write_bytes(blob.read_bytes()[:-10] + b"0123456789")
    assert "the cache has no complete copy" in sentence(fetch(GPT2))


def test_a_cache_that_was_cut_later_is_mended(fetch, shelf):
    blob = (folder_of(fetch(GPT2)) / WEIGHTS).resolve()
    blob.write_bytes(blob.read_bytes()[:100])
    run = fetch(GPT2)
    assert f"{WEIGHTS} of {GPT2} was damaged; downloading it again." in run.stdout
    assert same(folder_of(run), shelf, GPT2)


def test_content_is_hashed_once(tmp_path, monkeypatch):
    folder = tmp_path / "models--some--model" / "snapshots" / "1a2b"
    folder.mkdir(parents=True)
    (folder / WEIGHTS).write_bytes(b"weights")
    wanted = {WEIGHTS: hashlib.sha256(b"weights").hexdigest()}
    assert ours._damaged(folder, wanted) == []
    assert ours._damaged(folder, {WEIGHTS: "0" * 64, "config.json": "0" * 40}) == [
        "config.json",
        WEIGHTS,
    ]
    ours._mark(folder, wanted)
    monkeypatch.setattr(ours, "_digest", lambda *_: pytest.fail("hashed again"))
    assert ours._damaged(folder, wanted) == []


def test_pickled_weights_are_fetched_only_where_no_others_exist(fetch, hub, shelf, tmp_path):
    source = next(repository for repository in shelf if repository.name == GPT2).folder
    for name in ("both", "only"):
        shutil.copytree(source, tmp_path / name)
        (tmp_path / name / ours.PICKLE).write_bytes(b"pickled")
        hub.repositories.append(Repository(f"some/{name}", tmp_path / name))
    (tmp_path / "only" / WEIGHTS).unlink()
    both, only = fetch("some/both"), fetch("some/only")
    assert not (folder_of(both) / ours.PICKLE).exists()
    assert (folder_of(only) / ours.PICKLE).exists()
    assert "some/only has no safetensors: pytorch_model.bin is read as weights only" in only.stdout
    (tmp_path / "only" / ours.PICKLE).rename(tmp_path / "only" / "weights.h5")
    hub.repositories[-1] = Repository("some/only", tmp_path / "only")
    assert "some/only has no weights as safetensors" in sentence(fetch("some/only"))


LOAD_DATA = (
    PRELUDE
    + f"""
from utils.course.hub import load_hub_dataset
loaded = load_hub_dataset({FEEDBACK!r}, revision="refs/convert/parquet")
import json
rows = {{split: list(loaded[split]) for split in loaded}}
print(json.dumps([rows, str(loaded["train"].features["sentiment"])]))
"""
)


def test_data_sets_come_the_same_way(client, hub):
    plain = LOAD_DATA.replace("from utils.course.hub", "from datasets").replace(
        "load_hub_dataset", "load_dataset"
    )
    found = [client(program).stdout.strip().splitlines()[-1] for program in (LOAD_DATA, plain)]
    rows, labels = json.loads(found[0])
    assert found[0] == found[1] and len(rows["test"]) == 60 and "negative" in labels
    hub.stop()
    again = client(LOAD_DATA).stdout.splitlines()
    assert again[0] == f"The Hub does not answer; using the earlier download of {FEEDBACK}."
    assert again[-1] == found[0]


def test_a_damaged_data_set_is_fetched_again(client, hub, tmp_path):
    hub.faults = [Fault("flipped", "train/0000.parquet")]
    run = client(LOAD_DATA)
    assert "default/train/0000.parquet of" in run.stdout and run.returncode == 0
    assert half_written(tmp_path / "home") == []


def test_a_full_disk_is_one_sentence():
    message = str(ours._understood(OSError(errno.ENOSPC, "No space left on device"), GPT2, False))
    assert message.startswith(
        f"The disk is full and {GPT2} does not fit: free some space, or set HF_HOME"
    )


def test_an_error_of_ours_keeps_its_stack():
    assert ours._understood(KeyError("x"), GPT2, False) is None


@pytest.fixture
def colab(monkeypatch):
    """A simulated google.colab whose secrets behave as the test sets them."""

    def install(get) -> None:
        userdata = types.SimpleNamespace(get=get)
        package = types.ModuleType("google.colab")
        package.userdata = userdata
        monkeypatch.setitem(sys.modules, "google.colab", package)

    return install


def test_the_token_comes_from_the_secret_then_the_variable_then_a_login(
    colab, monkeypatch, tmp_path
):
    monkeypatch.setenv("HF_TOKEN", "hf_variable\n")
    colab(lambda name: {"HF_TOKEN": "hf_secret"}[name])
    assert ours.read_token() == "hf_secret"

    def denied(name):
        raise PermissionError(f"Notebook does not have access to secret {name}")

    colab(denied)
    assert ours.read_token() == "hf_variable"
    monkeypatch.delenv("HF_TOKEN")
    login = tmp_path / "token"
    login.write_text("hf_login")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(login))
    assert ours.read_token() == "hf_login"
    login.unlink()
    assert ours.read_token() is None
