"""The loopback Hub against the real clients: they load exactly the served files."""

import dataclasses
import json

import pytest

from tests.hub import server, shelves
from utils.course import profiles
from utils.data.reading import fingerprint

LOAD = """
import json, transformers
found = {}
for name, kind in json.loads(NAMES).items():
    tokenizer = getattr(transformers, kind[1]).from_pretrained(name)
    model = getattr(transformers, kind[0]).from_pretrained(name)
    found[name] = [type(model).__name__, type(tokenizer).__name__, len(tokenizer),
                   float(sum(p.double().sum() for p in model.state_dict().values()))]
print(json.dumps(found))
"""
KINDS = {
    "vinai/phobert-base": ("AutoModel", "PhobertTokenizer"),
    "NlpHUST/gpt2-vietnamese": ("AutoModelForCausalLM", "AutoTokenizer"),
    "unsloth/Llama-3.2-1B-Instruct": ("AutoModelForCausalLM", "AutoTokenizer"),
    "Qwen/Qwen2.5-3B-Instruct": ("AutoModelForCausalLM", "AutoTokenizer"),
    "google-t5/t5-small": ("AutoModelForSeq2SeqLM", "AutoTokenizer"),
}


def last_line(run):
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout.strip().splitlines()[-1]


def identifiers(settings) -> set[str]:
    """Every Hub identifier that a profile names."""
    found = set()
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            found |= identifiers(value)
        elif isinstance(value, str) and value.count("/") == 1:
            found.add(value)
    return found


def test_every_model_of_the_profiles_is_served(shelf):
    served = {repository.name for repository in shelf}
    for profile in profiles.TABLE.values():
        assert identifiers(profile) <= served


def test_transformers_loads_every_model_by_its_real_name(client, shelf):
    folders = {repository.name: repository.folder for repository in shelf}
    local = {str(folders[name]): kind for name, kind in KINDS.items()}
    program = LOAD.replace("NAMES", repr(json.dumps(KINDS | local)))
    found = json.loads(last_line(client(program)))
    for name in KINDS:
        assert found[name] == found[str(folders[name])]
    assert found["vinai/phobert-base"][1] == "PhobertTokenizer"
    assert found["google-t5/t5-small"][0] == "T5ForConditionalGeneration"


def test_the_data_sets_load_as_the_course_loads_them(client):
    program = """
from utils.data import feedback as data; from utils.data import pairs as preference_data
from utils.data.reading import fingerprint
feedback = data.load_feedback(offline=False, quiet=True)
pairs = preference_data.load_preferences(offline=False, quiet=True)
human = preference_data.load_human_like(offline=False, quiet=True)
import json
print(json.dumps([
    {split: content.num_rows for split, content in loaded.items()}
    for loaded in (feedback, pairs, human)
] + [fingerprint(feedback)]))
"""
    feedback, pairs, human, found = json.loads(last_line(client(program)))
    assert feedback == {"train": 60, "validation": 60, "test": 60}
    assert pairs == {"train": 60, "test": 60}
    assert human == {"train": 54, "test": 6}  # the Hub's has no test split
    from utils.data import feedback as data

    sample = data.load_feedback(quiet=True)
    first = {split: content.select(range(60)) for split, content in sample.items()}
    assert found == fingerprint(first)


def test_a_second_load_fetches_no_weights(client, hub):
    program = "import huggingface_hub as h; print(h.snapshot_download('NlpHUST/gpt2-vietnamese'))"
    last_line(client(program))
    assert any("GET /NlpHUST/gpt2-vietnamese/resolve" in line for line in hub.asked)
    hub.forget()
    last_line(client(program))
    assert hub.asked == ["GET /api/models/NlpHUST/gpt2-vietnamese/revision/main"]


QUESTIONS = """
import json
import huggingface_hub as h
from huggingface_hub import errors
def ask(call):
    try:
        call()
        return "yes"
    except errors.LocalTokenNotFoundError:
        return "no token"
    except errors.HfHubHTTPError as error:
        return f"{type(error).__name__} {error.response.status_code}"
gated, copy = "meta-llama/Llama-3.2-1B-Instruct", "unsloth/Llama-3.2-1B-Instruct"
print(json.dumps([
    ask(lambda: h.auth_check(copy)),
    ask(lambda: h.auth_check(gated)),
    ask(lambda: h.hf_hub_download(gated, "config.json")),
    ask(lambda: h.model_info(gated)),
    ask(lambda: h.model_info("nobody/nothing")),
    ask(lambda: h.model_info(copy, revision="v9")),
    ask(lambda: h.hf_hub_download(copy, "missing.json")),
    ask(lambda: h.whoami()),
]))
"""
GATE_401, GATE_403 = "GatedRepoError 401", "GatedRepoError 403"
ABSENT = ["RevisionNotFoundError 404", "RemoteEntryNotFoundError 404"]


@pytest.mark.parametrize(
    "token, copy, gate, card, missing, absent, who",
    [
        ("", "yes", GATE_401, "yes", "RepositoryNotFoundError 401", ABSENT, "no token"),
        (server.ACCEPTED, "yes", "yes", "yes", "RepositoryNotFoundError 404", ABSENT, "yes"),
        (
            server.WITHOUT_ACCESS,
            "yes",
            GATE_403,
            "yes",
            "RepositoryNotFoundError 404",
            ABSENT,
            "yes",
        ),
        ("hf_wrong", *["HfHubHTTPError 401"] * 4, ["HfHubHTTPError 401"] * 2, "HfHubHTTPError 401"),
    ],
)
def test_it_refuses_as_the_hub_does(client, token, copy, gate, card, missing, absent, who):
    answers = json.loads(last_line(client(QUESTIONS, HF_TOKEN=token)))
    assert answers == [copy, gate, gate, card, missing, *absent, who]


def test_the_gated_models_have_copies_on_the_shelf(shelf):
    by_name = {repository.name: repository for repository in shelf}
    for name, copy in shelves.GATED.items():
        assert by_name[name].gated and not by_name[copy].gated
        assert by_name[name].files == by_name[copy].files
