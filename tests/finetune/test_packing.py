"""Packed batches with separate rows must give the losses of TRL's one long row."""

import pytest
import torch
from transformers import LlamaConfig, MistralConfig, Qwen2Config
from transformers.masking_utils import find_packed_sequence_indices
from trl import SFTTrainer

from tests.helpers import chat_worker
from utils import models
from utils.course.errors import CourseError
from utils.finetune.packing import PackedRows, need_full_attention
from utils.models.chat import answer_ids, prompt_ids
from utils.models.precision import float32_adapters


def test_positions_and_labels_by_hand():
    rows = [
        {"input_ids": [5, 6, 7, 8, 9], "labels": [-100, 6, 7, 8, 9], "seq_lengths": [3, 2]},
        {"input_ids": [4, 3], "labels": [-100, 3], "seq_lengths": [2]},
    ]
    batch = PackedRows(pad_token_id=1)(rows)
    assert set(batch) == {"input_ids", "position_ids", "labels"}
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9], [4, 3, 1, 1, 1]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 1, 2]]
    # token 8 begins a text, so the text before must not predict it
    assert batch["labels"].tolist() == [[-100, 6, 7, -100, 9], [-100, 3, -100, -100, -100]]
    texts = find_packed_sequence_indices(batch["position_ids"])
    assert texts.tolist() == [[0, 0, 0, 1, 1], [0, 0, 1, 1, 1]]


@pytest.mark.parametrize("model", ["llama", "qwen"])
def test_losses_and_gradients_equal_trls_one_long_row(model, monkeypatch, tmp_path):
    monkeypatch.setenv(models.CHAT_VARIABLE, model)
    folder = chat_worker.stand_in()
    model = chat_worker.shaken(chat_worker.adapted(folder))
    trainer = chat_worker.sft_trainer(
        model, folder, chat_worker.pairs(24)["train"], tmp_path, 4, 1, max_length=128, packing=True
    )
    rows = list(trainer.train_dataset)
    widths = {len(row["input_ids"]) for row in rows}
    assert len(rows) > 2 and len(widths) > 1 and max(len(row["seq_lengths"]) for row in rows) > 1
    found = []
    theirs = SFTTrainer(
        model=model,
        args=trainer.args,
        train_dataset=trainer.train_dataset,
        processing_class=models.chat_tokenizer(folder),
    )
    float32_adapters(model)  # TRL has rounded the adapters
    for collator in (trainer.data_collator, theirs.data_collator):
        model.zero_grad()
        loss = trainer.compute_loss(model, trainer._prepare_inputs(collator(rows)))
        loss.backward()
        learned = [p.grad.clone() for p in model.parameters() if p.requires_grad]
        found.append((loss.item(), learned))
    assert trainer.data_collator(rows)["input_ids"].shape == (len(rows), max(widths))
    assert theirs.data_collator(rows)["input_ids"].shape[0] == 1
    (loss, ours), (their_loss, gradients) = found
    assert loss == pytest.approx(their_loss, abs=1e-5)
    for mine, other in zip(ours, gradients, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-3)
    assert max(float(gradient.abs().max()) for gradient in gradients) > 1e-3


@pytest.mark.parametrize("what", ["Packing", "The shared prompt"])
def test_a_model_with_a_window_or_a_state_is_refused_with_a_sentence(what):
    """In such models, texts in one row would attend to each other without an error."""
    config = Qwen2Config(num_hidden_layers=2, use_sliding_window=True, max_window_layers=1)
    assert "sliding_attention" in config.layer_types
    with pytest.raises(CourseError, match=rf"{what} needs full attention .* sliding_attention"):
        need_full_attention(config, what)
    need_full_attention(Qwen2Config(num_hidden_layers=2), what)
    need_full_attention(LlamaConfig(num_hidden_layers=2), what)
    with pytest.raises(CourseError, match=rf"{what} needs full attention .* sliding_attention"):
        need_full_attention(MistralConfig(sliding_window=8), what)  # in every layer
    need_full_attention(MistralConfig(sliding_window=None), what)


def test_tokens_are_counted_without_padding(tmp_path):
    folder = chat_worker.stand_in()
    rows = chat_worker.pairs(12)["train"]
    trainer = chat_worker.sft_trainer(
        chat_worker.adapted(folder), folder, rows, tmp_path, 4, 1, max_length=128, packing=True
    )
    tokenizer = models.chat_tokenizer(folder)
    alone = [
        len(prompt_ids(tokenizer, question)) + len(answer_ids(tokenizer, answer))
        for question, answer in zip(rows["question"], rows["chosen"], strict=True)
    ]
    assert trainer.real_tokens() == sum(alone)
