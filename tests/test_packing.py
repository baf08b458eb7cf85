"""Rows that stay rows must teach what TRL's one long row teaches."""

import pytest
import torch
from transformers.masking_utils import find_packed_sequence_indices
from trl import SFTTrainer

from tests import chat_worker
from utils import models
from utils.packing import PackedRows
from utils.precision import float32_adapters


def test_positions_and_labels_by_hand():
    rows = [
        {"input_ids": [5, 6, 7, 8, 9], "labels": [-100, 6, 7, 8, 9], "seq_lengths": [3, 2]},
        {"input_ids": [4, 3], "labels": [-100, 3], "seq_lengths": [2]},
    ]
    batch = PackedRows(pad_token_id=1)(rows)
    assert set(batch) == {"input_ids", "position_ids", "labels"}
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9], [4, 3, 1, 1, 1]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 1, 2]]
    # 8 begins a text: another text must not be asked for it
    assert batch["labels"].tolist() == [[-100, 6, 7, -100, 9], [-100, 3, -100, -100, -100]]
    texts = find_packed_sequence_indices(batch["position_ids"])
    assert texts.tolist() == [[0, 0, 0, 1, 1], [0, 0, 1, 1, 1]]


@pytest.mark.parametrize("wish", ["llama", "qwen"])
def test_losses_and_gradients_equal_trls_one_long_row(wish, monkeypatch, tmp_path):
    monkeypatch.setenv(models.CHAT_WISH, wish)
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
    float32_adapters(model)  # TRL has rounded them
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
