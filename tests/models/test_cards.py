"""The model card, the merged model and the upload, on an untrained stand-in and without the Hub."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard, RepoUrl, constants
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.helpers import chat_worker as worker
from tests.hub import server
from utils import models
from utils.course import folders, hub, paths
from utils.course.artifacts import Shelf
from utils.course.session import Course
from utils.models import cards
from utils.models.chat import answer_logps

NAME = "04_llama_dpo_vi_alpaca"
METRICS = {
    "preference_accuracy_after": 0.5812345,
    "win_rate": 0.42,
    "ended_after": 1.0,
    "kl": 0.8,
    "train_seconds": 12.5,
    "pairs_per_second": 31.25,
    "beta": 0.1,
}
RESULTS = ("preference_accuracy_after", "win_rate", "ended_after", "kl")
LLAMA = "meta-llama/Llama-3.2-1B-Instruct"
REFUSED = (hub.HubError, models.ModelError)


@pytest.fixture(scope="module")
def base():
    return worker.stand_in()


@pytest.fixture(scope="module")
def adapted(base):
    return worker.shaken(worker.adapted(base)).eval()


def handed_over(adapted, base, shelf: Path, base_name: str, profile=worker.LAB) -> Path:
    """A complete artifact, made as a notebook makes it."""
    course = Course(NAME, profile, 20, Shelf(shelf / "lab"))
    source = {"profile": profile.name, "model": base_name, "data": "0123456789abcdef"}
    with course.hand_over(METRICS, inputs=source) as folder:
        models.save_adapter(adapted, models.chat_tokenizer(base), folder, base_name)
    return shelf / "lab" / NAME


@pytest.fixture(scope="module")
def artifact(adapted, base, tmp_path_factory):
    return handed_over(adapted, base, tmp_path_factory.mktemp("shelf"), "llama stand-in")


@pytest.fixture(scope="module")
def merged(artifact, base):
    return models.merge(artifact, base, worker.LAB)


def rows_of(card: ModelCard) -> dict[str, str]:
    """The names and values of the tables of a card."""
    lines = [line.strip("| ").split(" | ") for line in card.text.splitlines() if line[:3] == "| `"]
    return {name.strip("`"): value for name, value in lines}


# --- The card ------------------------------------------------------------------------------------


@pytest.mark.parametrize("of_merged", [False, True], ids=["adapter", "merged"])
def test_the_card_has_every_value_of_metrics_json_and_can_be_read_again(artifact, of_merged):
    saved = json.loads((artifact / "metrics.json").read_text(encoding="utf-8"))
    again = ModelCard(str(models.model_card(artifact, merged=of_merged)))
    shown = rows_of(again)
    for name, value in saved.items():
        if isinstance(value, float):
            assert float(shown[name]) == pytest.approx(value, rel=1e-5), name
        else:
            assert shown[name] == str(value), name
    assert shown["data"] == "0123456789abcdef"
    results = {each.metric_type: each for each in again.data.eval_results}
    assert {name: each.metric_value for name, each in results.items()} == {
        name: METRICS[name] for name in RESULTS
    }
    assert results["win_rate"].metric_name == "win rate"
    assert results["win_rate"].dataset_args == {"fingerprint": "0123456789abcdef"}
    assert again.data.language == "vi"
    assert again.data.library_name == ("transformers" if of_merged else "peft")


def test_every_fact_of_a_session_is_a_fact_of_the_run():
    """A new fact must not appear on the Hub as a result."""
    facts = Course(NAME, worker.LAB, 20, Shelf(Path("nowhere"))).facts()
    assert [name for name in facts if not cards.RUN_FACT.fullmatch(name)] == []


def test_the_settings_and_counts_of_notebooks_05_and_07_are_no_results():
    counts = ("weight", "votes", "ties", "people", "pairs", "kept_annotators")
    assert all(cards.RUN_FACT.fullmatch(name) for name in counts)
    assert not any(map(cards.RUN_FACT.fullmatch, ("win_rate", "kl", "position_bias", "kappa")))


def test_the_card_of_a_stand_in_says_that_it_has_no_use_outside(artifact):
    card = models.model_card(artifact, merged=True)
    assert "no use outside the course" in card.text
    assert "was not measured again" in card.text
    assert card.data.base_model is None and card.data.license is None  # it is not on the Hub
    assert "not measured again" not in models.model_card(artifact).text


@pytest.mark.parametrize(
    ("name", "licence", "licence_name"),
    [
        (LLAMA, "llama3.2", None),
        ("unsloth/Llama-3.2-1B-Instruct", "llama3.2", None),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama3.1", None),
        ("Qwen/Qwen2.5-3B-Instruct", "other", "qwen-research"),
        ("Qwen/Qwen3-1.7B", "apache-2.0", None),
        ("lan/a-model-of-hers", None, None),
    ],
)
def test_the_card_of_a_real_base_names_it_and_its_terms(
    adapted, base, tmp_path, name, licence, licence_name
):
    artifact = handed_over(adapted, base, tmp_path, name)
    card = models.model_card(artifact)
    assert (card.data.license, card.data.license_name) == (licence, licence_name)
    assert "no use outside" not in card.text and f"| `base model` | {name} |" in card.text
    if name != "unsloth/Llama-3.2-1B-Instruct":
        assert card.data.base_model == name
    else:  # the copy has the weights and the terms of the original
        assert card.data.base_model == LLAMA
    assert ("Built with Llama" in card.text) == (licence or "").startswith("llama")
    assert card.data.base_model_relation == "adapter"
    assert models.model_card(artifact, merged=True).data.base_model_relation == "finetune"


def test_the_licences_of_all_models_have_an_identifier():
    for profile in cards.TABLE.values():
        for model in (*profile.chat.choices.values(), profile.chat.labelled):
            assert bool(model.licence) == bool(model.licence_id), model.hub_id


def test_the_card_of_a_short_lesson_says_so(adapted, base, tmp_path):
    quick = replace(worker.LAB, name="lab-quick")
    card = models.model_card(handed_over(adapted, base, tmp_path, "llama stand-in", quick))
    assert "a few rows only" in card.text


def test_the_card_is_in_the_students_language(artifact, monkeypatch):
    monkeypatch.setenv("COURSE_LANG", "vi")
    card = models.model_card(artifact)
    assert "## Hạn chế" in card.text and "## Limitations" not in card.text


@pytest.mark.parametrize("lost", ["metrics.json", "base.json", "manifest.json"])
def test_an_incomplete_artifact_has_no_card(adapted, base, tmp_path, lost):
    artifact = handed_over(adapted, base, tmp_path, "llama stand-in")
    (artifact / lost).unlink()
    with pytest.raises(models.ModelError, match=f"{NAME} is not the complete artifact") as caught:
        models.model_card(artifact)
    assert str(caught.value).count(". ") == 0


# --- Merging -------------------------------------------------------------------------------------


def logits_of(model) -> torch.Tensor:
    ids = torch.arange(10, 40)[None] % model.config.vocab_size
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits.float()


@pytest.fixture(scope="module")
def unmerged(artifact, base):
    """The adapter beside its base in 32 bits."""
    whole, _ = models.chat_model(base, worker.LAB, quantised=False)
    return PeftModel.from_pretrained(whole, str(artifact / "adapter"))


def test_the_merged_model_computes_what_base_and_adapter_compute(unmerged, merged):
    wanted = logits_of(unmerged)
    found = logits_of(AutoModelForCausalLM.from_pretrained(merged))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    with unmerged.disable_adapter():
        assert (logits_of(unmerged) - wanted).abs().max() > 0.01  # the adapter matters


@pytest.mark.filterwarnings("ignore:Merge lora module to 4-bit")
def test_merging_in_four_bits_loses_a_part_of_the_adapter(artifact, base, unmerged):
    """The reason why `merge` loads the base in 16 or 32 bits."""
    rounded = models.load_adapter(artifact, base, worker.LAB)
    before = logits_of(rounded)
    change = (logits_of(rounded.merge_and_unload()) - before).abs().max()
    again = PeftModel.from_pretrained(
        models.chat_model(base, worker.LAB, quantised=False)[0], str(artifact / "adapter")
    )
    exact = (logits_of(again.merge_and_unload()) - logits_of(unmerged)).abs().max()
    assert change > 100 * exact


def test_the_merged_folder_is_complete_and_names_no_folder(artifact, base, merged):
    assert merged == paths.cache() / "merged" / "lab" / NAME
    assert {path.name for path in artifact.parent.iterdir()} == {NAME}  # it is large
    assert folders.fault(merged) is None and folders.fault(artifact) is None
    names = {path.name for path in merged.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= names
    assert not {name for name in names if "adapter" in name}
    for path in merged.iterdir():
        if path.suffix in (".json", ".md", ".jinja"):
            text = path.read_text(encoding="utf-8")
            assert base not in text and str(artifact.parent) not in text, path.name
    card = ModelCard.load(merged / "README.md")
    assert str(card) == str(models.model_card(artifact, merged=True))


def test_the_merged_model_answers_with_the_adapters_tokenizer(artifact, merged):
    model = AutoModelForCausalLM.from_pretrained(merged)
    ours = AutoTokenizer.from_pretrained(merged)
    theirs = AutoTokenizer.from_pretrained(artifact / "adapter")
    question, answer = ["Thủ đô của Pháp?"], ["Thủ đô của Pháp là Paris."]
    assert ours.chat_template == theirs.chat_template
    found, _ = answer_logps(model, ours, question, answer)
    wanted, _ = answer_logps(model, theirs, question, answer)
    assert torch.equal(found, wanted)


def test_half_precision_is_saved_as_half_precision(artifact, base, tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))  # `merged` has the folder of the same name
    folder = models.merge(artifact, base, replace(worker.LAB, precision="bf16"))
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.bfloat16


def test_an_adapter_is_not_merged_into_another_base(artifact, monkeypatch):
    monkeypatch.setenv(models.CHAT_VARIABLE, "qwen")
    with pytest.raises(models.ModelError, match="with other weights"):
        models.merge(artifact, worker.stand_in(), worker.LAB)


# --- The upload ----------------------------------------------------------------------------------


class Account:
    """The calls of an upload, and what the account has."""

    def __init__(self, private: bool = True) -> None:
        self.private, self.created, self.uploaded = private, {}, {}

    def create_repo(self, api: HfApi, name: str, **settings: object) -> RepoUrl:
        self.created[name] = {"token": api.token, **settings}
        return RepoUrl(f"https://huggingface.co/{name}")

    def repo_info(self, api: HfApi, name: str) -> object:
        return type("Info", (), {"private": self.private})

    def upload_folder(self, api: HfApi, *, repo_id: str, **settings: object) -> None:
        self.uploaded[repo_id] = settings


@pytest.fixture
def account(monkeypatch):
    """Lan's account, of which this machine has the token."""
    made = Account()
    monkeypatch.setenv("HF_TOKEN", server.ACCEPTED)
    for name in ("create_repo", "repo_info", "upload_folder"):
        monkeypatch.setattr(HfApi, name, partialmethod(called, getattr(made, name)))
    return made


def called(api: HfApi, function: Callable, *arguments: object, **settings: object) -> object:
    """A call of the client, passed on to the account with the client itself."""
    return function(api, *arguments, **settings)


def test_an_upload_is_private_and_leaves_the_manifest_here(account, merged):
    assert models.push(merged, "lan/Llama-vi-dpo") == "https://huggingface.co/lan/Llama-vi-dpo"
    wanted = {"token": server.ACCEPTED, "private": True, "exist_ok": True}
    assert account.created == {"lan/Llama-vi-dpo": wanted}
    sent = account.uploaded["lan/Llama-vi-dpo"]
    assert sent["folder_path"] == merged and sent["ignore_patterns"] == ["manifest.json"]


def test_a_public_repository_is_left_alone_unless_it_is_asked_for(account, merged):
    account.private = False
    with pytest.raises(hub.HubError, match="lan/x exists on the Hub and is public"):
        models.push(merged, "lan/x")
    assert account.uploaded == {}
    models.push(merged, "lan/x", private=False)
    assert list(account.uploaded) == ["lan/x"] and account.created["lan/x"]["private"] is False


def said(merged: Path, repository: str = "lan/Llama-vi-dpo") -> str:
    """The only line that a student sees of an upload that fails."""
    with pytest.raises(REFUSED) as caught:
        models.push(merged, repository)
    (line,) = caught.value._render_traceback_()
    assert line.count(". ") == 0 and "\n" not in line
    return line


@pytest.fixture
def online(monkeypatch):
    """An empty loopback Hub, which knows tokens, in place of the real one."""
    with server.serve([]) as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield running


def test_without_a_token_nothing_is_asked_of_the_hub(online, monkeypatch, merged, tmp_path):
    monkeypatch.setattr(hub, "read_token", lambda: None)
    assert "There is no token of the Hub" in said(merged)
    assert online.asked == []


def test_a_token_that_the_hub_does_not_know(online, monkeypatch, merged):
    monkeypatch.setenv("HF_TOKEN", "hf_unknown")
    assert "does not accept the token" in said(merged)
    assert "POST /api/repos/create" in online.asked


def test_a_token_that_may_not_write_there(online, monkeypatch, merged):
    monkeypatch.setenv("HF_TOKEN", server.ACCEPTED)
    monkeypatch.setattr(server._Handler, "_route", lambda self: self._refuse(403, None, "no"))
    assert "may not write to an/x" in said(merged, "an/x")


def test_without_a_network(online, monkeypatch, merged):
    monkeypatch.setenv("HF_TOKEN", server.ACCEPTED)
    online.stop()
    assert "was not uploaded (ConnectError)" in said(merged)


def test_a_hub_that_is_down(online, monkeypatch, merged):
    monkeypatch.setenv("HF_TOKEN", server.ACCEPTED)
    online.faults.append(server.Fault("unavailable", times=99))
    assert "was not uploaded (status 503)" in said(merged)


def test_the_lab_is_offline_and_says_how_to_change_that(monkeypatch, merged):
    monkeypatch.setenv("HF_TOKEN", server.ACCEPTED)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE=0" in said(merged)


def test_a_name_that_no_repository_can_have(online, monkeypatch, merged):
    monkeypatch.setenv("HF_TOKEN", server.ACCEPTED)
    assert "cannot be the name of a repository" in said(merged, "lan/my model")


def test_a_folder_without_a_card_is_not_uploaded(account, artifact):
    assert "has no model card" in said(artifact)
    assert account.created == {}
