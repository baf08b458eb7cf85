"""Every loss of the course as a pure function of tensors: preference losses, then PPO's parts.

Comments give the shapes. A mask is boolean, and it is True where a token counts.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

# --- Log-probabilities ---------------------------------------------------------------------------


def token_logps(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability of each token: logits (..., vocabulary) and tokens (...) give (...).

    >>> token_logps(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))  # two equal logits: ln 1/2
    tensor([-0.6931])
    """
    scaled = logits.float() / temperature
    chosen = scaled.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return chosen - scaled.logsumexp(-1)


class _TokenLogpsInPlace(torch.autograd.Function):
    """Softmax that overwrites the logits, so that both passes use one vocabulary-sized buffer."""

    @staticmethod
    def forward(ctx, logits: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.temperature = temperature
        logps = logits.new_empty(tokens.shape)
        # On a CPU the blocks are small, so that a block stays in the cache between the passes.
        block = max(1, 2**18 // logits.shape[1]) if logits.device.type == "cpu" else len(logits)
        for start in range(0, len(tokens), max(1, block)):
            rows = slice(start, start + block)
            scores = logits[rows].div_(temperature)
            scores.sub_(scores.amax(-1, keepdim=True))
            chosen = scores.gather(-1, tokens[rows, None])
            total = scores.exp_().sum(-1, keepdim=True)
            scores.div_(total)
            logps[rows] = (chosen - total.log()).squeeze(-1)
        ctx.mark_dirty(logits)
        ctx.save_for_backward(logits, tokens)
        return logps, logits

    @staticmethod
    def backward(ctx, logps_grad: Tensor, _: None) -> tuple[Tensor, None, None]:
        # d logp / d logits = (onehot - softmax) / temperature
        probabilities, tokens = ctx.saved_tensors
        scale = (logps_grad / ctx.temperature).unsqueeze(-1)
        grad = probabilities.mul_(-scale)
        return grad.scatter_add_(-1, tokens.unsqueeze(-1), scale), None, None


def token_logps_(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """`token_logps` that overwrites its logits (tokens, vocabulary), in a third of the memory."""
    return _TokenLogpsInPlace.apply(logits, tokens, temperature)[0]


class _TokenLogpsAndKLInPlace(torch.autograd.Function):
    """Log-probabilities and the exact KL; both passes reuse the two buffers of the logits.

    On a GPU the forward pass needs a third buffer for a moment.
    """

    @staticmethod
    def forward(
        ctx, logits: Tensor, reference_logits: Tensor, tokens: Tensor, temperature: float
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.temperature = temperature
        logps, kl, reference_logps = (logits.new_empty(tokens.shape) for _ in range(3))
        block = max(1, 2**18 // logits.shape[1]) if logits.device.type == "cpu" else len(logits)
        for start in range(0, len(tokens), max(1, block)):
            rows = slice(start, start + block)
            scores, others = logits[rows].div_(temperature), reference_logits[rows]
            scores.sub_(scores.logsumexp(-1, keepdim=True))  # ln p
            others.div_(temperature)
            others.sub_(others.logsumexp(-1, keepdim=True))  # ln q
            logps[rows] = scores.gather(-1, tokens[rows, None]).squeeze(-1)
            reference_logps[rows] = others.gather(-1, tokens[rows, None]).squeeze(-1)
            torch.sub(scores, others, out=others)  # ln p/q
            scores.exp_()
            kl[rows] = (scores * others).sum(-1)
        ctx.mark_dirty(logits, reference_logits)
        ctx.save_for_backward(logits, reference_logits, tokens, kl)
        ctx.mark_non_differentiable(reference_logits, reference_logps)
        return logps, kl, reference_logps, logits, reference_logits

    @staticmethod
    def backward(
        ctx, logps_grad: Tensor | None, kl_grad: Tensor | None, *_: None
    ) -> tuple[Tensor, None, None, None]:
        # d logp / d logits = (onehot - p) / T;  d KL / d logits = p (ln p/q - KL) / T
        probabilities, log_ratios, tokens, kl = ctx.saved_tensors
        zero = torch.zeros_like(kl)
        for_logps = (zero if logps_grad is None else logps_grad) / ctx.temperature
        for_kl = (zero if kl_grad is None else kl_grad) / ctx.temperature
        weights = log_ratios.sub_(kl.unsqueeze(-1)).mul_(for_kl.unsqueeze(-1))
        grad = probabilities.mul_(weights.sub_(for_logps.unsqueeze(-1)))
        grad.scatter_add_(-1, tokens.unsqueeze(-1), for_logps.unsqueeze(-1))
        return grad, None, None, None


def token_logps_and_kl_(
    logits: Tensor, reference_logits: Tensor, tokens: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """ln p of each token, KL(p ‖ q) over the vocabulary at its position, ln q: each (tokens,).

    Both logits are (tokens, vocabulary) and are overwritten; the reference gets no gradient.
    """
    given = (logits, reference_logits, tokens, temperature)
    return _TokenLogpsAndKLInPlace.apply(*given)[:3]


def exact_kl(logits: Tensor, reference_logits: Tensor) -> Tensor:
    """KL(p ‖ q) summed over the vocabulary: two logits (..., vocabulary) give (...).

    >>> exact_kl(torch.tensor([0.7, 0.3]).log(), torch.tensor([0.5, 0.5]).log())
    tensor(0.0823)
    """
    logps = logits.log_softmax(-1)
    return (logps.exp() * (logps - reference_logits.log_softmax(-1))).sum(-1)


def sequence_logps(logits: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """Summed log-probability of each response: logits (batch, sequence, vocabulary) give (batch,).

    The logits at position t predict token t + 1; `mask` (batch, sequence) marks response tokens.
    """
    logps = token_logps(logits[:, :-1], tokens[:, 1:])  # (batch, sequence - 1)
    return (logps * mask[:, 1:]).sum(-1)


# --- Masks and sampling --------------------------------------------------------------------------


def positions(attention: Tensor) -> Tensor:
    """Position ids that start at 0 with the first real token of each row, both (batch, sequence).

    >>> positions(torch.tensor([[False, True, True]]))
    tensor([[0, 0, 1]])
    """
    return (attention.long().cumsum(1) - 1).clamp(min=0)


def up_to_end(responses: Tensor, end: int) -> Tensor:
    """True up to and including the first end-of-text token: both (batch, response).

    >>> up_to_end(torch.tensor([[5, 2, 6, 2]]), end=2)
    tensor([[ True,  True, False, False]])
    """
    ends = (responses == end).long()
    return ends.cumsum(1) - ends == 0


def unpack(packed: Tensor, mask: Tensor) -> Tensor:
    """Entries (tokens, …), one per True of the mask, in (batch, response, …); zero elsewhere."""
    rows = packed.new_zeros(*mask.shape, *packed.shape[1:])
    rows[mask] = packed
    return rows


def inverse_cdf(logits: Tensor, draws: Tensor) -> Tensor:
    """The token whose slice of [0, 1) contains the draw: logits (rows, vocabulary), draws (rows,).

    >>> inverse_cdf(torch.zeros(2, 4), torch.tensor([0.1, 0.6]))  # four equal slices
    tensor([0, 2])
    """
    weights = (logits - logits.amax(-1, keepdim=True)).exp_().cumsum(-1)
    thresholds = draws.unsqueeze(1) * weights[:, -1:]
    chosen = torch.searchsorted(weights, thresholds, right=True).squeeze(1)
    return chosen.clamp_(max=logits.shape[1] - 1)


# --- Means over a mask ---------------------------------------------------------------------------


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the values where the mask is True.

    >>> masked_mean(torch.tensor([1.0, 3.0, 99.0]), torch.tensor([True, True, False]))
    tensor(2.)
    """
    return torch.where(mask, values, 0.0).sum() / mask.sum()


def masked_whiten(values: Tensor, mask: Tensor, *, shift_mean: bool = True) -> Tensor:
    """Scale to unit variance (and zero mean, if shifted) over the mask; zero outside it.

    >>> masked_whiten(torch.tensor([1.0, 3.0, 99.0]), torch.tensor([True, True, False]))
    tensor([-0.7071,  0.7071,  0.0000])
    """
    mean = masked_mean(values, mask)
    count = mask.sum()
    variance = masked_mean((values - mean) ** 2, mask) * count / (count - 1).clamp(min=1)
    whitened = (values - mean) * torch.rsqrt(variance + 1e-8)
    return torch.where(mask, whitened if shift_mean else whitened + mean, 0.0)


# --- Reward models -------------------------------------------------------------------------------


def bradley_terry_loss(chosen_rewards: Tensor, rejected_rewards: Tensor) -> Tensor:
    """-ln σ(chosen - rejected), averaged: both (batch,).

    >>> bradley_terry_loss(torch.tensor([1.0]), torch.tensor([1.0]))  # no preference yet: ln 2
    tensor(0.6931)
    """
    return -F.logsigmoid(chosen_rewards - rejected_rewards).mean()


def margin_loss(chosen_rewards: Tensor, rejected_rewards: Tensor, margin: float = 1.0) -> Tensor:
    """max(0, margin - (chosen - rejected)), averaged: a pair beyond the margin has loss 0."""
    return F.relu(margin - (chosen_rewards - rejected_rewards)).mean()


# --- Direct preference losses --------------------------------------------------------------------


def dpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float = 0.1,
    variant: Literal["sigmoid", "ipo", "hinge", "robust"] = "sigmoid",
    label_smoothing: float = 0.0,
) -> Tensor:
    """DPO from log-probabilities summed over each response, all (batch,); averaged over the batch.

    `ipo` needs log-probabilities averaged over the response. `robust` assumes that a share
    `label_smoothing` of the labels is flipped.

    >>> start = torch.tensor([-5.0])
    >>> dpo_loss(start, start, start, start)  # policy = reference: ln 2
    tensor(0.6931)
    """
    chosen_logratios = chosen_logps - reference_chosen_logps
    rejected_logratios = rejected_logps - reference_rejected_logps
    logits = chosen_logratios - rejected_logratios
    if variant == "sigmoid":
        kept = (1 - label_smoothing) * F.logsigmoid(beta * logits)
        return -(kept + label_smoothing * F.logsigmoid(-beta * logits)).mean()
    if variant == "ipo":
        return ((logits - 1 / (2 * beta)) ** 2).mean()
    if variant == "hinge":
        return F.relu(1 - beta * logits).mean()
    if variant == "robust":
        if not 0 <= label_smoothing < 0.5:
            raise ValueError(
                f"Robust DPO found label_smoothing = {label_smoothing}: give the share of flipped "
                "labels, which is at least 0 and less than 0.5."
            )
        kept = (1 - label_smoothing) * F.logsigmoid(beta * logits)
        flipped = label_smoothing * F.logsigmoid(-beta * logits)
        return -((kept - flipped) / (1 - 2 * label_smoothing)).mean()
    raise ValueError(
        f"dpo_loss knows no variant {variant!r}: use 'sigmoid', 'ipo', 'hinge' or 'robust'."
    )


def orpo_loss(
    chosen_logps: Tensor, rejected_logps: Tensor, chosen_nll: Tensor, *, beta: float = 0.1
) -> Tensor:
    """ORPO: the SFT loss plus beta times -ln σ(ln odds ratio).

    `chosen_logps` and `rejected_logps` (batch,) are means per token: the probability of a whole
    answer is so small that its odds are almost equal to it. `chosen_nll` is the usual next-token
    loss on the chosen answers.
    """
    # ln odds(p) = ln p - ln(1 - p), from ln p without leaving the log domain
    chosen_odds = chosen_logps - torch.log(-torch.expm1(chosen_logps))
    log_odds = chosen_odds - (rejected_logps - torch.log(-torch.expm1(rejected_logps)))
    return chosen_nll - beta * F.logsigmoid(log_odds).mean()


# --- The parts of PPO ----------------------------------------------------------------------------


def kl_estimate(
    logps: Tensor, reference_logps: Tensor, estimator: Literal["k1", "k3"] = "k1"
) -> Tensor:
    """KL(policy ‖ reference) estimated at sampled tokens, elementwise.

    k1 = ln p - ln q is unbiased and may be negative; k3 = q/p - 1 - ln(q/p) is never negative.

    >>> kl_estimate(torch.tensor([-1.0]), torch.tensor([-1.5]), "k1")
    tensor([0.5000])
    """
    log_ratio = reference_logps - logps
    if estimator == "k1":
        return -log_ratio
    if estimator == "k3":
        return torch.expm1(log_ratio) - log_ratio
    raise ValueError(f"kl_estimate knows no estimator {estimator!r}: use 'k1' or 'k3'.")


def per_token_rewards(kl: Tensor, scores: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """-kl_coef · KL at every token, plus the score at the last one: kl, mask (batch, response).

    >>> kl, mask = torch.tensor([[0.1, 0.2, 0.0]]), torch.tensor([[True, True, False]])
    >>> per_token_rewards(kl, torch.tensor([1.0]), mask, kl_coef=0.5)
    tensor([[-0.0500,  0.9000,  0.0000]])
    """
    rewards = torch.where(mask, -kl_coef * kl, 0.0)
    last = (mask.sum(1, keepdim=True) - 1).clamp(min=0)  # (batch, 1)
    return rewards.scatter_add(1, last, scores.to(rewards.dtype).unsqueeze(1))


def gae(
    rewards: Tensor, values: Tensor, *, gamma: float = 1.0, lam: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation: (advantages, returns), each (batch, response).

    δ_t = r_t + γ V_{t+1} - V_t and A_t = δ_t + γλ A_{t+1}; after the last token V and A are zero.

    >>> advantages, returns = gae(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.5]]))
    >>> advantages, returns  # λ = 1: the reward received minus the value expected
    (tensor([[0.5000, 0.5000]]), tensor([[1., 1.]]))
    """
    following = F.pad(values[:, 1:], (0, 1))  # V_{t+1}
    deltas = rewards + gamma * following - values
    advantages = torch.empty_like(deltas)
    running = torch.zeros_like(deltas[:, 0])
    for t in reversed(range(deltas.shape[1])):
        running = deltas[:, t] + gamma * lam * running
        advantages[:, t] = running
    return advantages, advantages + values


def clipped_policy_loss(
    logps: Tensor, old_logps: Tensor, advantages: Tensor, clip_range: float = 0.2
) -> Tensor:
    """max(-A·ratio, -A·clip(ratio)) elementwise, with ratio = exp(logps - old_logps)."""
    ratio = torch.exp(logps - old_logps)
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return torch.maximum(-advantages * ratio, -advantages * clipped)


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, clip_range: float | None = 0.2
) -> Tensor:
    """½ max((V - R)², (clip(V) - R)²) elementwise; clip(V) is within clip_range of the old V."""
    errors = (values - returns) ** 2
    if clip_range is None:
        return 0.5 * errors
    clipped = torch.clamp(values, old_values - clip_range, old_values + clip_range)
    return 0.5 * torch.maximum(errors, (clipped - returns) ** 2)
