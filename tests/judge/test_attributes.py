"""The predicted policy is the one that maximises reward minus β · KL."""

import pytest
import torch

from utils.judge.attributes import PRESENT, attribute_rates, divergence, predicted


@pytest.fixture
def reference():
    draws = torch.randn(5, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return draws.log_softmax(1)


def test_no_policy_near_the_prediction_has_a_larger_objective(reference):
    worth, beta = 1.25, 0.7

    def objective(policy):
        reward = (policy.exp() @ (worth * PRESENT.sum(1))).mean()
        return float(reward - beta * divergence(policy, reference))

    best = predicted(reference, worth, beta)
    for seed in range(50):
        noise = torch.randn(5, 16, generator=torch.Generator().manual_seed(seed)) * 0.1
        assert objective((best + noise).log_softmax(1)) < objective(best)


def test_independent_attributes_move_by_worth_over_beta_in_log_odds():
    rate = torch.tensor([0.45, 0.2, 0.5, 0.7], dtype=torch.float64)
    logps = (PRESENT @ rate.log() + (1 - PRESENT) @ (1 - rate).log())[None]
    torch.testing.assert_close(attribute_rates(logps), rate)
    moved = attribute_rates(predicted(logps, 1.25, 0.5))
    torch.testing.assert_close(torch.logit(moved), torch.logit(rate) + 1.25 / 0.5)


def test_the_divergence_is_zero_only_at_the_reference(reference):
    assert divergence(reference, reference) == 0
    assert divergence(predicted(reference, 1.25, 1.0), reference) > 0
