"""Progress bars: a headless run shows none, and a finished step leaves none."""

import pytest
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from utils.course import progress
from utils.finetune import training


@pytest.fixture
def drawn(monkeypatch):
    """Every bar that was created, as (description, total, final count)."""
    made = []

    class Noted:
        def __init__(self, desc, total, disable, **_):
            self.what, self.total, self.n, self.hidden, self.figures = desc, total, 0, disable, {}
            made.append(self)

        def update(self, count=1):
            self.n += count

        def set_postfix(self, **figures):
            self.figures |= figures

        def close(self):
            self.closed = True

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.close()

    monkeypatch.setattr(progress, "tqdm", Noted)
    return made


def test_a_headless_run_shows_none(monkeypatch):
    monkeypatch.setenv(progress.PROGRESS_VARIABLE, "0")
    assert not progress.live()
    assert progress.bar("texts", 3).disable


def test_a_terminal_or_an_open_notebook_shows_them(monkeypatch):
    monkeypatch.delenv(progress.PROGRESS_VARIABLE, raising=False)
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    assert progress.live()
    shown = progress.bar("texts", 3)
    assert not shown.disable and shown.delay == progress.DELAY and not shown.leave
    shown.close()


def test_tracking_gives_every_item_and_counts_it(drawn):
    assert list(progress.track([4, 5, 6], "texts")) == [4, 5, 6]
    assert (drawn[0].what, drawn[0].total, drawn[0].n) == ("texts", 3, 3) and drawn[0].closed


def test_a_training_and_its_evaluations_have_bars_with_the_loss(drawn, tmp_path):
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=1))
    rows = Dataset.from_dict({"input_ids": [[1, 2, 3]] * 6, "labels": [[1, 2, 3]] * 6})
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=2,
        per_device_eval_batch_size=3,
        num_train_epochs=2,
        eval_strategy="epoch",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
    )
    training.run(Trainer(model, arguments, train_dataset=rows, eval_dataset=rows))
    trained, *evaluated = drawn
    assert (trained.what, trained.total, trained.n) == ("training", 6, 6) and trained.closed
    assert float(trained.figures["loss"]) > 0
    assert [(bar.what, bar.total, bar.n) for bar in evaluated] == [("evaluation", 2, 2)] * 2
