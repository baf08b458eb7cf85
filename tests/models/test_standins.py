import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, PhobertTokenizer

from utils.course.paths import ROOT
from utils.data.text import segment
from utils.models import standins


def test_phobert_has_the_real_classes_and_files(texts):
    folder = standins.phobert(texts)
    assert {"vocab.txt", "bpe.codes", "config.json", "model.safetensors"} <= {
        p.name for p in folder.iterdir()
    }
    tokenizer = PhobertTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    assert type(model).__name__ == "RobertaForSequenceClassification"
    assert model.config.max_position_embeddings == 258
    ids = tokenizer([segment("giảng viên nhiệt tình .")])["input_ids"][0]
    assert tokenizer.convert_ids_to_tokens(ids) == ["<s>", "giảng_viên", "nhiệt_tình", ".", "</s>"]
    assert ids[0] == 0 and ids[-1] == 2
    assert tokenizer.unk_token_id not in ids


def test_an_unseen_word_falls_into_known_pieces(texts):
    tokenizer = PhobertTokenizer.from_pretrained(standins.phobert(texts))
    pieces = tokenizer.tokenize("giảng_dạy")
    assert len(pieces) > 1 and all(piece.endswith("@@") for piece in pieces[:-1])
    assert "".join(pieces).replace("@@", "") == "giảng_dạy"


def test_it_is_cached_and_rebuilt_when_truncated(texts, monkeypatch):
    folder = standins.phobert(texts)
    before = (folder / "vocab.txt").stat().st_mtime_ns
    assert standins.phobert(texts) == folder
    assert (folder / "vocab.txt").stat().st_mtime_ns == before
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:100])
    standins.phobert(texts)
    assert (folder / "model.safetensors").read_bytes() == weights


def test_building_it_does_not_change_the_numbers_drawn_afterwards(texts, monkeypatch, tmp_path):
    """The first run of notebook 01 builds the stand-in, and later runs load it."""
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        standins.gpt2(texts, vocabulary=300)
        drawn.append(torch.rand(4))
    assert torch.equal(*drawn)


KINDS = ("phobert", "gpt2", "t5")


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory) -> dict[str, Path]:
    """The stand-ins' folders, built in another process with another order of hashes."""
    program = (
        f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n"
        f"from conftest import TEXTS; from utils.models import standins\n"
        f"for kind in {KINDS!r}: print(getattr(standins, kind)(TEXTS * 20))"
    )
    cache = str(tmp_path_factory.mktemp("elsewhere"))
    environment = {**os.environ, "COURSE_CACHE": cache, "PYTHONHASHSEED": "7"}
    run = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    folders = map(Path, run.stdout.strip().splitlines()[-len(KINDS) :])
    return dict(zip(KINDS, folders, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_another_process_builds_the_same_bytes(texts, kind, elsewhere):
    for path in getattr(standins, kind)(texts).iterdir():
        assert path.read_bytes() == (elsewhere[kind] / path.name).read_bytes(), path.name


def test_word_vectors_put_company_together():
    encoded = [[5, 6, 7], [5, 6, 8], [9, 10, 11], [9, 10, 12]] * 5
    vectors = standins._word_vectors(encoded, vocabulary=14, size=4)
    similarity = torch.nn.functional.cosine_similarity
    assert similarity(vectors[7], vectors[8], dim=0) > similarity(vectors[7], vectors[11], dim=0)
    assert not vectors[13].any()
