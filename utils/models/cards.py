"""Publishing an adapter: its model card, the merged model, and the upload to the Hub.

1. model_card: the card of an artifact, written from its metrics.json, base.json and manifest.
2. merge: the adapter added to the weights of its base, and saved with tokenizer and card.
3. push: the upload to the user's own repository.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData, errors
from transformers import AutoTokenizer

from utils.course import folders, hub, paths
from utils.course.language import tr
from utils.course.profiles import TABLE, ChatModel, Profile
from utils.models.adapters import BASE_NOTE, ModelError, load_adapter
from utils.models.language import STAND_IN

COURSE = "Preference Tuning with LLMs"
# entries of metrics.json that say how a run was made; all others are results
RUN_FACT = re.compile(
    r"profile|seed|threads|python|beta|weight|steps|trained_parameters"
    r"|votes|ties|people|kept_annotators|pairs"
    r"|\w+_(seconds|per_second|memory_mb|version)"
)

# --- 1. The card ---------------------------------------------------------------------------------


def _read(artifact: Path) -> tuple[dict, dict, dict]:
    """The metrics, the note on the base and the inputs of an artifact that has an adapter."""
    reason = folders.fault(artifact)
    if reason is None and not (artifact / BASE_NOTE).is_file():
        reason = tr("{file} is missing", file=BASE_NOTE)
    if reason is not None:
        raise ModelError(
            tr(
                "{artifact} is not the complete artifact of an adapter ({reason}): run the "
                "notebook that makes it.",
                artifact=artifact.name,
                reason=reason,
            )
        )
    metrics, note, manifest = (
        json.loads((artifact / name).read_text(encoding="utf-8"))
        for name in ("metrics.json", BASE_NOTE, folders.MANIFEST)
    )
    return metrics, note, manifest["inputs"]


def _model_of(base: str) -> ChatModel:
    """The profiles' entry of a base, which has its licence; an empty one for any other base."""
    known = TABLE["t4"].chat
    models = (*known.choices.values(), known.labelled)
    return next((m for m in models if base in (m.hub_id, m.copy)), ChatModel(base))


def _metadata(
    name: str, metrics: Mapping, base: ChatModel, inputs: Mapping, *, merged: bool
) -> ModelCardData:
    """What the Hub reads of a card: base, language, library, licence and results."""
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type="preference-pairs",
            dataset_name="the data of this run",
            dataset_args={"fingerprint": inputs["data"]} if "data" in inputs else None,
            metric_type=key,
            metric_name=key.replace("_", " "),
            metric_value=value,
        )
        for key, value in metrics.items()
        if not RUN_FACT.fullmatch(key) and isinstance(value, int | float) and math.isfinite(value)
    ]
    on_hub = {}
    if not base.hub_id.endswith(STAND_IN):  # a stand-in is no repository of the Hub
        licence, _, other = base.licence_id.partition(": ")
        on_hub = {
            "base_model": base.hub_id,
            "base_model_relation": "finetune" if merged else "adapter",
            "license": licence or None,
            "license_name": other or None,
            "license_link": f"https://huggingface.co/{base.hub_id}" if other else None,
        }
    return ModelCardData(
        language="vi",
        library_name="transformers" if merged else "peft",
        pipeline_tag="text-generation",
        tags=["preference-tuning-with-llms", "lora"],
        model_name=name,
        eval_results=results,
        **on_hub,
    )


def _table(rows: Mapping[str, object], *titles: str) -> str:
    """A Markdown table of names and values."""
    shown = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in rows.items()}
    lines = [f"| {' | '.join(titles)} |", "|---|---|"]
    return "\n".join([*lines, *(f"| `{key}` | {value} |" for key, value in shown.items())])


def _limits(metrics: Mapping, *, stand_in: bool, merged: bool) -> str:
    """What this model has not been shown to do, as a list."""
    found = []
    if stand_in:
        found += [
            tr(
                "The base is a small stand-in model that the course trains on a CPU within "
                "minutes. It has no use outside the course."
            )
        ]
    if merged:
        found += [
            tr(
                "The metrics were measured with the adapter on a base in four bits. The merged "
                "model has weights in 16 or 32 bits and was not measured again."
            )
        ]
    if str(metrics["profile"]).endswith("-quick"):
        found += [tr("It was trained on a few rows only, as a short lesson (COURSE_QUICK).")]
    found += [
        tr("The metrics come from one run with one seed and one set of data."),
        tr("Its answers can be wrong or harmful: it was not tested for safety."),
        tr("It was made to learn how preference tuning works, and not for use in a product."),
    ]
    return "\n".join(f"- {sentence}" for sentence in found)


def _licence(base: ChatModel) -> str:
    """The terms under which the model may be passed on."""
    if base.hub_id.endswith(STAND_IN):
        return tr(
            "The stand-in has no terms of its own. The pairs that the course ships are under "
            "{licence}; other data have the terms of their owner.",
            licence="CC BY 4.0",
        )
    terms = tr(base.licence) if base.licence else tr("see the base model's page on the Hub")
    text = tr("The terms of the base model apply: {terms}.", terms=terms)
    if base.licence_id.startswith("llama"):  # section 1.b of the licence asks for all of this
        version = base.licence_id.removeprefix("llama")
        text += "\n\n" + tr(
            "In a public repository, the name must begin with “Llama”, and a copy of the licence "
            "must be among the files."
        )
        text += (
            f"\n\nBuilt with Llama. Llama {version} is licensed under the Llama {version} "
            "Community License, Copyright © Meta Platforms, Inc. All Rights Reserved."
        )
    return text


def model_card(artifact: Path, *, merged: bool = False) -> ModelCard:
    """The card of an artifact's adapter, or of the model into which the adapter was merged."""
    metrics, note, inputs = _read(artifact)
    base = _model_of(note["base"])
    facts = {"base model": note["base"], "weights of the base": note.get("content") or "-"}
    facts |= {"data": inputs.get("data", "-")}
    facts |= {key: value for key, value in metrics.items() if RUN_FACT.fullmatch(key)}
    results = {key: value for key, value in metrics.items() if not RUN_FACT.fullmatch(key)}
    names = {"base": note["base"], "notebook": artifact.name}
    if merged:
        what = tr(
            "This model is {base} with the adapter of notebook `{notebook}` merged into its "
            "weights.",
            **names,
        )
    else:
        what = tr("This is the adapter that notebook `{notebook}` trained on {base}.", **names)
    limits = _limits(metrics, stand_in=base.hub_id.endswith(STAND_IN), merged=merged)
    parts = [
        f"# {artifact.name}",
        what,
        tr("It was made in the course {course}, on Vietnamese data.", course=COURSE),
        f"## {tr('Metrics')}",
        tr("Notebook `{notebook}` explains each name.", notebook=artifact.name),
        _table(results, tr("metric"), tr("value")),
        f"## {tr('Limitations')}",
        limits,
        f"## {tr('Licence')}",
        _licence(base),
        f"## {tr('How it was made')}",
        tr("The weights of the base and the data are named by a short hash of their content."),
        _table(facts, tr("fact"), tr("value")),
    ]
    data = _metadata(artifact.name, metrics, base, inputs, merged=merged)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")


# --- 2. Merging ----------------------------------------------------------------------------------


def merge(artifact: Path, base_folder: str, profile: Profile) -> Path:
    """Add an artifact's adapter to its base's weights; the folder with model, tokenizer and card.

    The folder is in the cache, because it is large and can be made again: a student's Google Drive
    keeps the adapter only.
    """
    card = model_card(artifact, merged=True)
    # A 4-bit weight is one of 16 values per block. The sum of such a weight and its correction
    # would be rounded to these values again, which loses a part of what the adapter has learned.
    adapted = load_adapter(artifact, base_folder, profile, quantised=False)
    merged = adapted.merge_and_unload(safe_merge=True)
    final = paths.cache() / "merged" / profile.name / artifact.name
    with folders.written_whole(final, final.name) as folder:
        merged.save_pretrained(folder)
        AutoTokenizer.from_pretrained(artifact / "adapter").save_pretrained(folder)
        card.save(folder / "README.md")
    return final


# --- 3. The upload -------------------------------------------------------------------------------


def push(folder: Path, repository: str, *, private: bool = True) -> str:
    """Upload a folder with its card to a repository of the user; the address of its page.

    The repository is made if it is missing. A public one is left alone unless `private=False`.
    """
    if not (folder / "README.md").is_file():
        raise ModelError(
            tr("{folder} has no model card: upload the folder of `merge`.", folder=folder.name)
        )
    token = hub.read_token()
    if not token:
        raise hub.TokenError(
            tr(
                "There is no token of the Hub: create one that may write in the settings of your "
                "account, and put it into the variable (on Colab: the secret) HF_TOKEN."
            )
        )
    api = HfApi(token=token)
    try:
        page = api.create_repo(repository, private=private, exist_ok=True)
        open_to_all = private and not api.repo_info(page.repo_id).private
        if not open_to_all:
            api.upload_folder(
                repo_id=page.repo_id,
                folder_path=folder,
                ignore_patterns=[folders.MANIFEST],  # the course's own, of this machine
                commit_message=f"{folder.name}, by {COURSE}",
            )
    # RuntimeError comes from hf_xet, and ValueError from a proxy that sent a web page
    except (errors.HTTPError, OSError, RuntimeError, ValueError) as error:
        raise _not_uploaded(error, repository) from error
    if open_to_all:
        raise hub.HubError(
            tr(
                "{repository} exists on the Hub and is public: choose another name, or upload "
                "with private=False.",
                repository=repository,
            )
        )
    return str(page)


def _not_uploaded(error: Exception, repository: str) -> hub.HubError:
    """The course's error for an error of the Hub's client during an upload."""
    status = getattr(getattr(error, "response", None), "status_code", 0)
    if isinstance(error, errors.HFValidationError):
        return hub.HubError(
            tr(
                "{repository!r} cannot be the name of a repository: write your account's name, "
                "a slash and a name, for instance lan/Llama-vi-dpo.",
                repository=repository,
            )
        )
    if isinstance(error, errors.OfflineModeIsEnabled):
        return hub.UnreachableError(
            tr(
                "{repository} was not uploaded because HF_HUB_OFFLINE is set, as the lab profile "
                "does: start Jupyter with HF_HUB_OFFLINE=0 and run the notebook again.",
                repository=repository,
            )
        )
    if status == 401:
        return hub.TokenError(
            tr("The Hub does not accept the token HF_TOKEN: create a new one there.")
        )
    if status == 403:
        return hub.TokenError(
            tr(
                "The token HF_TOKEN may not write to {repository}: begin the name with your own "
                "account's, and use a token that may write.",
                repository=repository,
            )
        )
    reason = tr("status {status}", status=status) if status else type(error).__name__
    return hub.UnreachableError(
        tr(
            "{repository} was not uploaded ({reason}): check the connection and run this cell "
            "again.",
            repository=repository,
            reason=reason,
        )
    )
