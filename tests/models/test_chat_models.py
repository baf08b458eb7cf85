"""Four-bit models, adapters and their hand-over, on untrained stand-ins."""

import copy
import json
import math
import shutil
from dataclasses import replace

import bitsandbytes as bnb
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from tests.helpers import chat_worker as worker
from utils import models
from utils.course.artifacts import Shelf, find
from utils.course.session import CONTINUE_VARIABLE, Course
from utils.models.adapters import UnpackedLinear4bit
from utils.models.chat import answer_logps
from utils.models.precision import DTYPES, float32_adapters

NAME = "04_llama_dpo_vi_alpaca"


@pytest.fixture(scope="module")
def folder():
    return worker.stand_in()


@pytest.fixture(scope="module")
def tokenizer(folder):
    return models.chat_tokenizer(folder)


@pytest.fixture(scope="module")
def data():
    return worker.pairs()["train"]


# --- Four bits -----------------------------------------------------------------------------------


def dequantised(model):
    """The same model with its four-bit weights written out in 32 bits."""
    plain = copy.deepcopy(model)
    for name, layer in list(plain.named_modules()):
        if isinstance(layer, bnb.nn.Linear4bit):
            weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
            full = torch.nn.Linear(layer.in_features, layer.out_features, bias=False)
            full.weight = torch.nn.Parameter(weight, requires_grad=False)
            parent, _, child = name.rpartition(".")
            setattr(plain.get_submodule(parent), child, full)
    return plain


def test_every_projection_is_in_nf4_and_the_rest_is_not(folder):
    model, _ = models.chat_model(folder, worker.LAB)
    packed = [n for n, layer in model.named_modules() if isinstance(layer, bnb.nn.Linear4bit)]
    assert len(packed) == 7 * model.config.num_hidden_layers
    assert {name.rsplit(".", 1)[1] for name in packed} == set(models.PROJECTIONS)
    weight = model.get_submodule(packed[0]).weight
    assert weight.quant_type == "nf4" and weight.dtype == torch.uint8
    assert weight.quant_state.nested  # the scales are in 8 bits
    assert model.get_input_embeddings().weight.dtype == torch.float32


def test_a_layers_gradients_on_the_cpu_are_those_of_the_weights_it_stands_for(folder):
    """The library warns that no autograd kernel is registered: the gradient is right."""
    model, _ = models.chat_model(folder, worker.LAB)
    layer = model.model.layers[0].mlp.gate_proj
    weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state).double()
    torch.manual_seed(0)
    for shape in ((5, layer.in_features), (1, 1, layer.in_features), (2, 3, layer.in_features)):
        x = torch.randn(shape, requires_grad=True)
        outward = torch.randn(*shape[:-1], layer.out_features)
        y = layer(x)
        torch.testing.assert_close(y.double(), x.double() @ weight.T, atol=1e-4, rtol=1e-4)
        y.backward(outward)
        torch.testing.assert_close(x.grad.double(), outward.double() @ weight, atol=1e-4, rtol=1e-4)


def test_unpacking_once_gives_what_bitsandbytes_gives(folder):
    model, _ = models.chat_model(folder, worker.LAB)
    layer = model.model.layers[0].mlp.down_proj
    torch.manual_seed(0)
    for rows in (1, 40):
        x, outward = torch.randn(rows, layer.in_features), torch.randn(rows, layer.out_features)
        found = []
        for kind in (UnpackedLinear4bit, bnb.nn.Linear4bit):
            layer.__class__, asked = kind, x.clone().requires_grad_()
            y = layer(asked)
            y.backward(outward)
            found.append((y.detach(), asked.grad))
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


def test_new_weights_are_unpacked_again(folder):
    """Merging an adapter into a four-bit layer replaces its weights."""
    model, _ = models.chat_model(folder, worker.LAB)
    layer, other = (model.model.layers[number].mlp.down_proj for number in (0, 1))
    x = torch.randn(2, layer.in_features)
    before = layer(x)
    layer.weight = other.weight
    assert not torch.equal(layer(x), before)
    assert torch.equal(layer(x), other(x))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("asked_before", [False, True], ids=["fresh", "after an evaluation"])
def test_the_adapters_gradients_are_those_of_the_model_it_stands_for(
    folder, checkpointing, asked_before
):
    """This also holds after generation, when bitsandbytes would drop the gradient."""
    model = worker.shaken(worker.adapted(folder)).train()
    plain = dequantised(model)
    if asked_before:
        with torch.inference_mode():
            model.eval()(input_ids=torch.arange(10, 30)[None])
        model.train()
    if checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable()
    ids = torch.randint(10, model.config.vocab_size, (3, 20))
    losses = []
    for each in (model, plain):
        loss = each(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    wanted = {n: p.grad for n, p in plain.named_parameters() if p.grad is not None}
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == wanted.keys() and len(found) == 14 * model.config.num_hidden_layers
    for name, gradient in wanted.items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-3, msg=name)


# --- Which model ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "kind", "name"),
    [
        (None, "LlamaForCausalLM", "llama stand-in"),
        ("llama", "LlamaForCausalLM", "llama stand-in"),
        (" Qwen ", "Qwen2ForCausalLM", "qwen stand-in"),
        ("qwen3", "Qwen3ForCausalLM", "qwen3 stand-in"),
        ("sailor", "Qwen2ForCausalLM", "sailor stand-in"),
    ],
)
def test_course_model_chooses(monkeypatch, choice, kind, name):
    monkeypatch.delenv(models.CHAT_VARIABLE, raising=False)
    if choice:
        monkeypatch.setenv(models.CHAT_VARIABLE, choice)
    with worker.tiny():
        folder, found = models.chat_source(worker.LAB.chat, worker.pairs())
    model, tokenizer = models.chat_model(folder, worker.LAB)
    assert (type(model).__name__, found) == (kind, name)
    assert tokenizer.pad_token != tokenizer.eos_token


def test_a_model_that_the_course_does_not_know_is_refused_in_one_sentence(monkeypatch):
    monkeypatch.setenv(models.CHAT_VARIABLE, "gemma")
    with pytest.raises(models.ModelError, match="gemma") as caught:
        models.chat_source(worker.LAB.chat, worker.pairs())
    assert str(caught.value).count(". ") == 0 and "llama, qwen, qwen3, sailor" in str(caught.value)
    assert len(caught.value._render_traceback_()) == 1


@pytest.mark.parametrize("pad", [None, "<|eot_id|>", "<|finetune_right_pad_id|>"])
def test_padding_never_looks_like_the_end_of_a_turn(folder, tmp_path, pad):
    """Hub copies of Llama come without a padding token, or with the end of turn for one."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.pad_token = pad
    tokenizer.save_pretrained(tmp_path)
    found = models.chat_tokenizer(str(tmp_path))
    assert found.pad_token == "<|finetune_right_pad_id|>" != found.eos_token


# --- Adapters ------------------------------------------------------------------------------------


def test_a_saved_adapter_gives_the_same_log_probabilities(folder, tokenizer, data, tmp_path):
    few = data.select(range(6))
    model = worker.shaken(worker.adapted(folder))
    wanted, _ = answer_logps(model, tokenizer, few["question"], few["chosen"])
    models.save_adapter(model, tokenizer, tmp_path, "llama stand-in")
    again = models.load_adapter(tmp_path, folder, worker.LAB)
    found, _ = answer_logps(again, tokenizer, few["question"], few["chosen"])
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-6)
    assert not any(p.requires_grad for p in again.parameters())
    trained = models.load_adapter(tmp_path, folder, worker.LAB, trainable=True)
    assert {p.dtype for p in trained.parameters() if p.requires_grad} == {torch.float32}
    base, _ = models.chat_model(folder, worker.LAB)
    unlearned, _ = answer_logps(base, tokenizer, few["question"], few["chosen"])
    assert (unlearned - wanted).abs().max() > 0.1  # the adapter matters


def test_a_saved_adapter_is_one_small_file_and_names_no_folder(folder, tokenizer, tmp_path):
    model = worker.shaken(worker.adapted(folder))
    model.add_adapter("reference", model.peft_config["default"])
    models.save_adapter(model, tokenizer, tmp_path, "llama stand-in")
    weights = [path.relative_to(tmp_path) for path in tmp_path.rglob("*.safetensors")]
    assert [str(path) for path in weights] == ["adapter/adapter_model.safetensors"]
    assert not [p for p in tmp_path.rglob("*") if p.suffix in (".bin", ".pt", ".pkl")]
    for path in tmp_path.rglob("*.*"):
        if path.suffix in (".json", ".md", ".jinja"):
            text = path.read_text(encoding="utf-8")
            assert folder not in text and str(worker.ROOT) not in text, path.name
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "llama stand-in"
    assert json.loads((tmp_path / models.BASE_NOTE).read_text()) == {
        "base": "llama stand-in",
        "content": models.content_hash(folder),
    }


def test_an_adapter_is_refused_on_a_base_of_other_weights(folder, tokenizer, tmp_path):
    """An adapter of a stand-in built from own data: without that data, the stand-in differs."""
    artifact, other = tmp_path / "03_llama_sft_vi_alpaca", tmp_path / "base"
    models.save_adapter(worker.adapted(folder), tokenizer, artifact, "llama stand-in")
    models.check_base(artifact, folder)
    shutil.copytree(folder, other)
    assert models.content_hash(other) == models.content_hash(folder)  # in any folder
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(models.ModelError, match=r"^The adapter in 03_llama_sft_vi_alpaca was "):
        models.load_adapter(artifact, str(other), worker.LAB)


def test_dpo_begins_at_ln_2_with_the_sft_adapter_as_its_reference(
    folder, tokenizer, data, tmp_path
):
    models.save_adapter(worker.shaken(worker.adapted(folder)), tokenizer, tmp_path, "llama")
    policy = models.load_adapter(tmp_path, folder, worker.LAB, trainable=True)
    few = data.select(range(8))
    trainer = worker.dpo_trainer(policy, folder, few, tmp_path / "checkpoints", 8, 1, max_steps=1)
    float32_adapters(trainer.model)
    rows = trainer.train_dataset
    batch = trainer._prepare_inputs(trainer.data_collator(list(rows)))
    with torch.no_grad():
        loss = float(trainer.compute_loss(trainer.model, batch))
    assert loss == pytest.approx(math.log(2), abs=1e-4)
    sft = models.load_adapter(tmp_path, folder, worker.LAB)
    questions = [row["prompt"][0]["content"] for row in rows]
    for side in ("chosen", "rejected"):
        answers = [row[side][0]["content"] for row in rows]
        wanted, _ = answer_logps(sft, tokenizer, questions, answers)
        torch.testing.assert_close(
            torch.tensor(rows[f"ref_{side}_logps"]),
            wanted,
            atol=1e-3,
            rtol=0,
        )
    before = {n: p.detach().clone() for n, p in policy.named_parameters() if p.requires_grad}
    trainer.train()
    for name, parameter in policy.named_parameters():
        if name in before:
            assert not torch.equal(parameter, before[name]), name
    assert {n.split(".")[-2] for n in before} == {"default"}


# --- Handing over --------------------------------------------------------------------------------


@pytest.fixture
def course(tmp_path):
    return Course(NAME, worker.LAB, 0, Shelf(tmp_path / "artifacts" / "lab"))


def hand_over(course, content, **keywords):
    with course.hand_over({"kl": 1.0}, inputs={"data": "a"}, **keywords) as folder:
        (folder / "weights.safetensors").write_text(content)


def read(course, name):
    return (course.shelf.folder / name / "weights.safetensors").read_text()


def test_the_former_result_is_kept_beside_the_new_one(course):
    for content in ("first", "second", "third"):
        hand_over(course, content, keep_former=True)
    assert (read(course, NAME), read(course, f"{NAME}.former")) == ("third", "second")
    assert find(NAME, course.shelf)[0] is not None
    assert find(f"{NAME}.former", course.shelf)[0] is not None  # it is complete as well
    hand_over(course, "fourth")
    assert (read(course, NAME), read(course, f"{NAME}.former")) == ("fourth", "second")
    names = {path.name for path in course.shelf.folder.iterdir()}
    assert names == {NAME, f"{NAME}.former"}


def test_a_run_that_fails_changes_neither(course):
    for content in ("first", "second"):
        hand_over(course, content, keep_former=True)
    with (
        pytest.raises(RuntimeError),
        course.hand_over({}, inputs={"data": "a"}, keep_former=True) as folder,
    ):
        (folder / "weights.safetensors").write_text("half")
        raise RuntimeError
    assert (read(course, NAME), read(course, f"{NAME}.former")) == ("second", "first")


def test_where_a_run_starts_is_chosen_and_reported(course, monkeypatch, tmp_path):
    monkeypatch.delenv(CONTINUE_VARIABLE, raising=False)
    first = tmp_path / "03_llama_sft_vi_alpaca"
    inputs = {"data": "a"}
    folder, message = course.adapter_to_start_from(first, inputs)
    assert folder == first and message == "starting from 03_llama_sft_vi_alpaca"
    hand_over(course, "earlier")
    folder, message = course.adapter_to_start_from(first, inputs)
    assert folder == first and f"{NAME}.former" in message and f"{CONTINUE_VARIABLE}=1" in message
    monkeypatch.setenv(CONTINUE_VARIABLE, "1")
    folder, message = course.adapter_to_start_from(first, inputs)
    assert folder == course.shelf.folder / NAME and f"{CONTINUE_VARIABLE}=1" in message
    # a result of other data is never continued, whatever the variable says
    assert course.adapter_to_start_from(first, {"data": "b"})[0] == first


def test_another_profile_computes_in_its_own_precision():
    for precision, dtype in DTYPES.items():
        settings = models.four_bits(replace(worker.LAB, precision=precision))
        assert settings.bnb_4bit_compute_dtype == dtype
        assert settings.bnb_4bit_quant_type == "nf4" and settings.bnb_4bit_use_double_quant
