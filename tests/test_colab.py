import sys
import types
from pathlib import Path

import pytest

from utils import colab

IMAGE = {  # Colab, August 2026
    "torch": "2.11.0+cu128",
    "numpy": "2.1.3",
    "pandas": "2.2.3",
    "ipykernel": "6.17.1",
    "ipython": "7.34.0",
    "transformers": "5.15.0",
    "peft": "0.20.0",
    "accelerate": "1.14.0",
    "huggingface_hub": "1.27.0",
    "datasets": "4.0.0",
    "pyarrow": "18.1.0",
    "tokenizers": "0.22.2",
    "safetensors": "0.8.0",
    "torchao": "0.10.0",
}


@pytest.fixture
def session(monkeypatch, tmp_path):
    """A Colab runtime whose pip only takes notes."""
    image, calls = dict(IMAGE), []
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    monkeypatch.setattr(
        colab, "installed_versions", lambda names: {n: image[n] for n in names if n in image}
    )
    monkeypatch.setattr(colab, "RESTARTED", tmp_path / "restarted")

    def pip(*arguments):
        calls.append(arguments)
        if arguments[0] == "install":
            kept = Path(arguments[2]).read_text(encoding="utf-8").split()
            calls[-1] = (*arguments, *kept)
            wanted = colab.requirements()
            for requirement in arguments[3:]:
                name = requirement.split(">")[0]
                image[name] = wanted[name].split(">=")[1].split(",")[0]
        else:
            image.pop(arguments[2])

    monkeypatch.setattr(colab, "_pip", pip)
    restarts = []
    monkeypatch.setattr(colab, "_restart", lambda: restarts.append(1))
    return image, calls, restarts


def test_elsewhere_nothing_happens(monkeypatch):
    monkeypatch.delitem(sys.modules, "google.colab", raising=False)
    monkeypatch.setattr(colab, "_pip", lambda *_: pytest.fail("pip was called"))
    colab.prepare()


def test_fresh_runtime_gets_what_it_lacks_and_keeps_the_protected(session):
    _, calls, _ = session
    colab.prepare()
    install = next(call for call in calls if call[0] == "install")
    text = " ".join(install)
    for name in ("trl", "bitsandbytes", "underthesea", "datasets", "pyarrow"):
        assert f"{name}>=" in text
    for name in colab.PROTECTED:
        assert f"{name}>=" not in text
        assert f"{name}=={IMAGE[name]}" in install
    assert ("uninstall", "-y", "torchao") in calls


def test_second_time_nothing_is_installed(session):
    _, calls, _ = session
    colab.prepare()
    before = len(calls)
    colab.prepare()
    assert len(calls) == before


def test_a_loaded_pyarrow_restarts_once_only(session, monkeypatch):
    image, _, restarts = session
    monkeypatch.setitem(sys.modules, "pyarrow", types.ModuleType("pyarrow"))
    for name in set(colab.NEEDED) - {"pyarrow"}:
        monkeypatch.delitem(sys.modules, name, raising=False)
    colab.prepare()
    assert len(restarts) == 1
    image["pyarrow"] = "18.1.0"
    colab.prepare()
    assert len(restarts) == 1


def test_requirements_accept_the_image_where_it_has_the_package():
    wanted = colab.requirements()
    for name in set(colab.NEEDED) & set(IMAGE) - {"datasets", "pyarrow"}:
        assert colab.satisfied(IMAGE[name], wanted[name]), name
    for name in colab.PROTECTED:
        if name in wanted:
            assert colab.satisfied(IMAGE[name], wanted[name]), name


@pytest.mark.parametrize(
    ("version", "wanted", "inside"),
    [
        ("4.0.0", ">=4.7,<6", False),
        ("4.7.0", ">=4.7,<6", True),
        ("5.2.0", ">=4.7,<6", True),
        ("6.0", ">=4.7,<6", False),
        ("2.11.0+cu128", ">=2.11,<3", True),
        ("0.10.0", ">=0.16", False),
    ],
)
def test_ranges(version, wanted, inside):
    assert colab.satisfied(version, wanted) is inside
