"""ln π(answer | prompt) for all models of the course.

The logits of a large vocabulary need most of a GPU's memory: 128,256 numbers in fp32 are half a
megabyte per token. So the output layer is applied only to the positions that predict a token of an
answer, one block of them at a time.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from utils.losses import token_logps
from utils.models import memory

BATCH_TOKENS = 8_192  # per forward pass, including padding
CPU_BATCH_TOKENS = 4_096  # on a CPU: larger tensors leave its caches and are slower
UNLIMITED = 10**9  # T5 has relative positions, so its texts can have any length
BLOCK_NUMBERS = 2**26  # logits per block: 256 MB in fp32


def trunk_and_head(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The transformer that computes hidden states, and the layer that computes logits from them."""
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    return bare.get_decoder(), bare.get_output_embeddings()


def positions(model: nn.Module) -> int:
    """The length of a model's context in tokens, for prompt and answer together."""
    return getattr(model.config, "max_position_embeddings", None) or UNLIMITED


def padded(
    rows: Sequence[Sequence[int]], filler: int, *, left: bool = False, width: int = 0
) -> tuple[Tensor, Tensor]:
    """Rows of tokens padded to one width, and the mask of real tokens: both (rows, width).

    >>> padded([[7, 0, 1], [1]], filler=0)[1]  # the token 0 is real, the padding 0 is not
    tensor([[ True,  True,  True],
            [ True, False, False]])
    """
    width = max(width, *map(len, rows))
    fillers = [[filler] * (width - len(row)) for row in rows]
    joined = [[*f, *r] if left else [*r, *f] for r, f in zip(rows, fillers, strict=True)]
    lengths = torch.tensor([len(row) for row in rows]).unsqueeze(1)
    column = torch.arange(width)
    return torch.tensor(joined), column >= width - lengths if left else column < lengths


def shift_right(answers: Tensor, start: int) -> Tensor:
    """The decoder's input when it predicts `answers`: the start token, then all but the last token.

    >>> shift_right(torch.tensor([[5, 6, 1]]), start=0)
    tensor([[0, 5, 6]])
    """
    return torch.cat([torch.full_like(answers[:, :1], start), answers[:, :-1]], dim=1)


def logps_from_states(head: nn.Module, states: Tensor, tokens: Tensor) -> Tensor:
    """Log-probabilities of tokens (n,) from the states that predict them (n, hidden), in blocks."""
    block = max(1, BLOCK_NUMBERS // head.weight.shape[0])
    parts = zip(states.split(block), tokens.split(block), strict=True)
    found = [token_logps(head(part), wanted) for part, wanted in parts]
    return torch.cat(found) if found else states.new_zeros(0, dtype=torch.float32)


def _decoder_only(
    model: PreTrainedModel, prompts: Sequence[list[int]], answers: Sequence[list[int]]
) -> Tensor:
    trunk, head = trunk_and_head(model)
    rows = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    tokens, real = (part.to(model.device) for part in padded(rows, filler=0))
    start = torch.tensor([len(prompt) for prompt in prompts], device=model.device).unsqueeze(1)
    wanted = real[:, 1:] & (torch.arange(1, tokens.shape[1], device=model.device) >= start)
    states = trunk(input_ids=tokens, attention_mask=real.long(), use_cache=False).last_hidden_state[
        :, :-1
    ]
    logps = logps_from_states(head, states[wanted], tokens[:, 1:][wanted])
    return torch.zeros(wanted.shape, device=model.device).masked_scatter(wanted, logps).sum(1)


def _encoder_decoder(
    model: PreTrainedModel, prompts: Sequence[list[int]], answers: Sequence[list[int]]
) -> Tensor:
    tokens, real = (part.to(model.device) for part in padded(prompts, filler=0))
    replies, wanted = (part.to(model.device) for part in padded(answers, filler=0))
    states = model.get_encoder()(input_ids=tokens, attention_mask=real.long()).last_hidden_state
    logits = model(
        encoder_outputs=BaseModelOutput(last_hidden_state=states),
        attention_mask=real.long(),
        decoder_input_ids=shift_right(replies, model.config.decoder_start_token_id),
        use_cache=False,
    ).logits
    return torch.where(wanted, token_logps(logits, replies), 0.0).sum(1)


@torch.inference_mode()
def answer_logps(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    answers: Sequence[list[int]],
    *,
    batch_tokens: int = BATCH_TOKENS,
) -> Tensor:
    """ln π(answer | prompt) of token lists, summed over each answer: (rows,) in fp32 on the CPU.

    The model computes in its own precision, without a trainer's autocast. Rows of similar length
    share a batch of at most `batch_tokens` tokens, on a CPU of at most CPU_BATCH_TOKENS; a batch
    that does not fit into memory is halved.
    """
    model.eval()
    score = _encoder_decoder if model.config.is_encoder_decoder else _decoder_only
    found = torch.zeros(len(prompts))

    def run(rows: list[int]) -> None:
        part = [prompts[row] for row in rows], [answers[row] for row in rows]
        found[rows] = score(model, *part).float().cpu()

    lengths = [len(p) + len(a) for p, a in zip(prompts, answers, strict=True)]
    if model.device.type == "cpu":
        batch_tokens = min(batch_tokens, CPU_BATCH_TOKENS)
    memory.in_batches(lengths, run, batch_tokens, "log-probabilities")
    return found
