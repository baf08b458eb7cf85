import torch
from transformers import GPT2Config, GPT2LMHeadModel
from trl.trainer.utils import add_fused_lm_head

from utils.finetune.orpo import answer_means
from utils.losses import orpo_loss


def batch() -> tuple[GPT2LMHeadModel, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=30, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    )
    ids = torch.randint(1, 30, (4, 9))  # two chosen rows, then two rejected rows
    lengths, starts = [9, 7, 8, 5], [3, 2, 3, 2]
    ids[2:, :3] = ids[:2, :3]  # both rows of a pair have the same prompt
    attention = torch.arange(9) < torch.tensor(lengths)[:, None]
    completion = attention & (torch.arange(9) >= torch.tensor(starts)[:, None])
    add_fused_lm_head(model)
    return model.double().eval(), {
        "input_ids": ids,
        "attention_mask": attention.long(),
        "completion_mask": completion.long(),
    }


def by_hand(model, inputs):
    """A loop over rows and tokens, each row alone and without padding."""
    sums, counts = [], []
    for ids, real, reply in zip(*inputs.values(), strict=True):
        row = ids[real.bool()]
        logps = model(row[None]).logits[0].log_softmax(-1)
        wanted = [t for t in range(1, len(row)) if reply[t]]
        sums.append(sum(logps[t - 1, row[t]] for t in wanted))
        counts.append(len(wanted))
    return sums, counts


def test_means_and_supervised_loss_equal_a_loop():
    model, inputs = batch()
    chosen, rejected, nll = answer_means(model, inputs)
    sums, counts = by_hand(model, inputs)
    means = torch.stack([s / c for s, c in zip(sums, counts, strict=True)])
    torch.testing.assert_close(torch.cat([chosen, rejected]).double(), means, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        nll.double(), -(sums[0] + sums[1]) / (counts[0] + counts[1]), atol=1e-5, rtol=1e-5
    )


def test_padding_does_not_count():
    model, inputs = batch()
    wider = {name: torch.nn.functional.pad(tensor, (0, 4)) for name, tensor in inputs.items()}
    for ours, padded in zip(answer_means(model, inputs), answer_means(model, wider), strict=True):
        torch.testing.assert_close(ours, padded, atol=1e-5, rtol=1e-5)


def test_without_weight_it_is_sft():
    model, inputs = batch()
    chosen, rejected, nll = answer_means(model, inputs)
    torch.testing.assert_close(orpo_loss(chosen, rejected, nll, beta=0.0), nll)
    assert orpo_loss(chosen, rejected, nll, beta=1.0) > nll
