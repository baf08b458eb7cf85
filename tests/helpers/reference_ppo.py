"""A second, slow implementation of PPO: float64, one token at a time, no shared code.

It uses lists of episode lengths in place of masks and padding, and every sum is a Python loop.
"""

import math

import torch
from torch import Tensor


def number(value: Tensor | float) -> float:
    return float(value.detach()) if isinstance(value, Tensor) else value


def log_softmax_at(logits: Tensor, token: int, temperature: float) -> Tensor:
    """ln of the softmax at one token, from the definition."""
    powers = [torch.exp(logit.double() / temperature) for logit in logits]
    return torch.log(powers[token] / sum(powers))


def episode_logps(
    model: torch.nn.Module, prompt: list[int], response: list[int], temperature: float
):
    """Log-probability of each response token and the hidden state before it, without padding."""
    output = model(
        input_ids=torch.tensor([prompt + response], device="cpu"), output_hidden_states=True
    )
    logps, states = [], []
    for step, token in enumerate(response):
        position = len(prompt) + step - 1
        logps.append(log_softmax_at(output.logits[0, position], token, temperature))
        states.append(output.hidden_states[-1][0, position])
    return logps, states


def kl_of_token(logp: Tensor, reference_logp: Tensor, estimator: str) -> Tensor:
    if estimator == "k1":
        return logp - reference_logp
    ratio = math.e ** (reference_logp - logp)
    return ratio - 1 - (reference_logp - logp)


def token_rewards(kls: list, score: float, kl_coef: float) -> list:
    rewards = [-kl_coef * kl for kl in kls]
    rewards[-1] = rewards[-1] + score
    return rewards


def advantages_of(rewards: list, values: list, gamma: float, lam: float) -> list:
    """Each advantage as an explicit sum of discounted temporal differences, without recursion."""
    following = [*values[1:], 0.0]
    deltas = [r + gamma * n - v for r, n, v in zip(rewards, following, values, strict=True)]
    return [
        sum((gamma * lam) ** (later - t) * deltas[later] for later in range(t, len(deltas)))
        for t in range(len(deltas))
    ]


def whiten(episodes: list[list], keep_mean: bool) -> list[list]:
    """Unit variance over every token of every episode (unbiased, as in a sample)."""
    flat = [number(x) for episode in episodes for x in episode]
    mean = sum(flat) / len(flat)
    variance = sum((x - mean) ** 2 for x in flat) / (len(flat) - 1)
    shift = mean if keep_mean else 0.0
    return [[(x - mean) / math.sqrt(variance + 1e-8) + shift for x in ep] for ep in episodes]


def policy_loss(logp: Tensor, old_logp: float, advantage: float, clip: float) -> Tensor:
    ratio = torch.exp(logp - old_logp)
    if advantage >= 0:  # above 1 + clip, a positive advantage has no gradient
        return -advantage * (ratio if ratio < 1 + clip else torch.tensor(1 + clip))
    return -advantage * (ratio if ratio > 1 - clip else torch.tensor(1 - clip))


def value_loss(value: Tensor, old_value: float, target: float, clip: float | None) -> Tensor:
    plain = (value - target) ** 2 / 2
    if clip is None or abs(number(value) - old_value) <= clip:
        return plain
    kept = old_value + clip if number(value) > old_value else old_value - clip
    clipped = torch.tensor((kept - target) ** 2 / 2)
    return plain if plain > clipped else clipped


def learn(episodes: list[dict], config: object, kl_coef: float) -> list[dict]:
    """Adds rewards, advantages and returns to episodes that hold logps, reference_logps, values."""
    for episode in episodes:
        pairs = zip(episode["logps"], episode["reference_logps"], strict=True)
        kls = [number(kl_of_token(logp, ref, config.kl_estimator)) for logp, ref in pairs]
        score = episode["score"]
        if config.reward_cap is not None:
            score = min(max(score, -config.reward_cap), config.reward_cap)
        if not episode["ended"]:
            score -= config.missing_eos_penalty
        episode["rewards"] = token_rewards(kls, score, kl_coef)
    if config.whiten_rewards:
        whitened = whiten([e["rewards"] for e in episodes], keep_mean=True)
        for episode, rewards in zip(episodes, whitened, strict=True):
            episode["rewards"] = rewards
    for episode in episodes:
        values = [number(value) for value in episode["values"]]
        advantages = advantages_of(episode["rewards"], values, config.gamma, config.lam)
        episode["advantages"] = advantages
        episode["returns"] = [a + v for a, v in zip(advantages, values, strict=True)]
    if config.whiten_advantages:
        whitened = whiten([e["advantages"] for e in episodes], keep_mean=False)
        for episode, advantages in zip(episodes, whitened, strict=True):
            episode["advantages"] = advantages
    return episodes
