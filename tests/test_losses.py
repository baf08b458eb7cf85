"""Losses against hand-computed numbers, limits, TRL's own functions and the slow reference."""

import doctest
import math
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from tests.helpers import reference_ppo
from utils import losses


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_docstring_examples():
    names = {"torch": torch, "token_logps": losses.token_logps}
    assert doctest.testmod(losses, extraglobs=names).failed == 0


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("kind", [losses.token_logps, losses.token_logps_])
def test_token_logps_and_their_gradient_match_the_definition(kind, temperature):
    logits = torch.randn(5, 11, requires_grad=True)
    tokens = torch.randint(11, (5,))
    weights = torch.randn(5)
    (kind(logits * 1.0, tokens, temperature) * weights).sum().backward()
    mine, logits.grad = logits.grad, None
    slow = torch.stack(
        [
            reference_ppo.log_softmax_at(row, int(token), temperature)
            for row, token in zip(logits, tokens, strict=True)
        ]
    )
    assert_close(kind(logits * 1.0, tokens, temperature), slow.float())
    (slow * weights).sum().backward()
    assert_close(mine, logits.grad)


def test_in_place_logps_do_not_depend_on_how_the_rows_are_cut_into_blocks():
    logits, tokens = torch.randn(7, 2**17), torch.randint(2**17, (7,))  # two rows per block
    assert_close(
        losses.token_logps_(logits.clone(), tokens), torch.log_softmax(logits, -1)[range(7), tokens]
    )


def test_in_place_logps_survive_extreme_logits_and_no_rows():
    logps = losses.token_logps_(torch.tensor([[1e4, 0.0], [-1e4, 0.0]]), torch.tensor([0, 0]))
    assert_close(logps, torch.tensor([0.0, -1e4]))
    assert losses.token_logps_(torch.empty(0, 4), torch.empty(0, dtype=torch.long)).shape == (0,)


def test_sequence_logps_sum_and_ignore_the_prompt():
    logits, tokens = torch.randn(2, 4, 6), torch.randint(6, (2, 4))
    mask = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 0]]).bool()
    logps = torch.log_softmax(logits, -1)
    by_hand = torch.stack(
        [
            logps[0, 1, tokens[0, 2]] + logps[0, 2, tokens[0, 3]],
            logps[1, 0, tokens[1, 1]] + logps[1, 1, tokens[1, 2]],
        ]
    )
    assert_close(losses.sequence_logps(logits, tokens, mask), by_hand)


def test_inverse_cdf_samples_the_softmax():
    logits = torch.randn(1, 5)
    draws = (torch.arange(20_000) + 0.5) / 20_000  # evenly spaced over [0, 1)
    tokens = losses.inverse_cdf(logits.expand(20_000, 5).clone(), draws)
    shares = torch.bincount(tokens, minlength=5) / 20_000
    assert_close(shares, logits.softmax(-1)[0], atol=1e-4, rtol=0)


def test_inverse_cdf_never_takes_an_impossible_token():
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0]]).expand(3, 4).clone()
    draws = torch.tensor([0.0, 0.5, 1 - 2**-24])
    assert losses.inverse_cdf(logits, draws).tolist() == [1, 3, 3]


def test_whitening_ignores_what_the_mask_hides():
    values, mask = torch.randn(4, 6), torch.rand(4, 6) > 0.4
    whitened = losses.masked_whiten(values, mask)
    assert_close(whitened[mask].mean(), torch.tensor(0.0), atol=1e-6, rtol=0)
    assert_close(whitened[mask].std(), torch.tensor(1.0))
    assert whitened[~mask].abs().sum() == 0
    poisoned = values.masked_fill(~mask, math.nan)
    assert_close(losses.masked_whiten(poisoned, mask), whitened)
    kept = losses.masked_whiten(values, mask, shift_mean=False)
    assert_close(kept[mask].mean(), values[mask].mean())


def test_whitening_one_value_is_finite():
    assert losses.masked_whiten(torch.tensor([3.0]), torch.tensor([True])).isfinite().all()


def test_k1_and_k3_estimate_the_same_kl_and_k3_is_never_negative():
    p, q = torch.randn(8).softmax(0), torch.randn(8).softmax(0)
    k1 = losses.kl_estimate(p.log(), q.log(), "k1")
    k3 = losses.kl_estimate(p.log(), q.log(), "k3")
    exact = torch.nn.functional.kl_div(q.log(), p, reduction="sum")
    assert_close((p * k1).sum(), exact)
    assert_close((p * k3).sum(), exact)
    assert (k3 >= 0).all() and (k1 < 0).any()


def test_unknown_names_are_errors_that_list_the_known_ones():
    with pytest.raises(ValueError, match="'k2': use 'k1' or 'k3'"):
        losses.kl_estimate(torch.zeros(1), torch.zeros(1), "k2")
    zero = torch.zeros(1)
    with pytest.raises(ValueError, match="'dpop'"):
        losses.dpo_loss(zero, zero, zero, zero, variant="dpop")
    with pytest.raises(ValueError, match=r"label_smoothing = 0\.5"):
        losses.dpo_loss(zero, zero, zero, zero, variant="robust", label_smoothing=0.5)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.9, 0.5), (1.0, 0.0)])
def test_gae_matches_the_explicit_sum_episode_by_episode(gamma, lam):
    lengths = [5, 1, 3]
    mask = torch.arange(5) < torch.tensor(lengths)[:, None]
    rewards, values = torch.randn(3, 5) * mask, torch.randn(3, 5) * mask
    advantages, returns = losses.gae(rewards, values, gamma=gamma, lam=lam)
    for row, length in enumerate(lengths):
        r, v = rewards[row, :length].tolist(), values[row, :length].tolist()
        slow = reference_ppo.advantages_of(r, v, gamma, lam)
        assert_close(advantages[row, :length], torch.tensor(slow))
        assert_close(returns[row, :length], torch.tensor(slow) + values[row, :length])


def test_clipped_losses_match_case_by_case_in_value_and_gradient():
    logps = torch.tensor([0.0, 0.3, -0.3, 0.3, -0.3, 0.1], dtype=torch.double, requires_grad=True)
    advantages = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, -2.0], dtype=torch.double)
    fast = losses.clipped_policy_loss(logps, torch.zeros(6).double(), advantages, 0.2)
    slow = torch.stack(
        [
            reference_ppo.policy_loss(p, 0.0, a, 0.2)
            for p, a in zip(logps, advantages.tolist(), strict=True)
        ]
    )
    assert_close(fast, slow, check_dtype=False)
    gradients = [torch.autograd.grad(x.sum(), logps)[0] for x in (fast, slow)]
    assert_close(*gradients)
    assert gradients[0][1] == 0 and gradients[0][4] == 0  # the clipped objective is constant


@pytest.mark.parametrize("clip", [0.2, None])
def test_clipped_value_loss_matches_case_by_case_in_value_and_gradient(clip):
    values = torch.tensor([0.0, 1.0, 1.0, -1.0, 0.1], dtype=torch.double, requires_grad=True)
    targets = torch.tensor([2.0, 2.0, -2.0, 0.05, 0.0], dtype=torch.double)
    fast = losses.clipped_value_loss(values, torch.zeros(5).double(), targets, clip)
    slow = torch.stack(
        [
            reference_ppo.value_loss(v, 0.0, t, clip)
            for v, t in zip(values, targets.tolist(), strict=True)
        ]
    )
    assert_close(fast, slow, check_dtype=False)
    assert_close(*[torch.autograd.grad(x.sum(), values)[0] for x in (fast, slow)])


def test_bradley_terry_and_margin_losses():
    chosen, rejected = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 3.0])
    by_hand = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(3))) / 2
    assert_close(losses.bradley_terry_loss(chosen, rejected), torch.tensor(by_hand))
    assert losses.margin_loss(chosen, rejected, margin=1.0) == 2.0  # (0 + 4) / 2


def test_dpo_pulls_only_on_the_difference():
    logps = torch.randn(4, 3, requires_grad=True)
    losses.dpo_loss(*logps).backward()
    assert_close(logps.grad[0], -logps.grad[1])
    shifted = logps.detach() + torch.tensor([1.0, 1.0, 0.0, 0.0])[:, None]
    assert_close(losses.dpo_loss(*shifted), losses.dpo_loss(*logps.detach()))


def test_dpo_variants_at_hand_computed_points():
    chosen, rejected, zero = torch.tensor([1.0]), torch.tensor([-1.0]), torch.zeros(1)

    def loss(**options):
        return losses.dpo_loss(chosen, rejected, zero, zero, beta=0.5, **options).item()

    sigmoid = math.log(1 + math.exp(-1))
    assert loss() == pytest.approx(sigmoid)
    assert loss(variant="ipo") == pytest.approx((2 - 1) ** 2)
    assert loss(variant="hinge") == 0
    flipped = math.log(1 + math.exp(1))
    assert loss(variant="robust", label_smoothing=0.1) == pytest.approx(
        (0.9 * sigmoid - 0.1 * flipped) / 0.8
    )
    assert loss(variant="robust") == pytest.approx(sigmoid)
    assert loss(label_smoothing=0.1) == pytest.approx(0.9 * sigmoid + 0.1 * flipped)


def test_robust_dpo_is_unbiased_under_flipped_labels():
    logps = torch.randn(4, 1000)
    swapped = logps[[1, 0, 3, 2]]
    options = {"variant": "robust", "label_smoothing": 0.2}
    noisy = 0.8 * losses.dpo_loss(*logps, **options) + 0.2 * losses.dpo_loss(*swapped, **options)
    assert_close(noisy, losses.dpo_loss(*logps))


def test_orpo_matches_trl_in_value_and_gradient():
    pytest.importorskip("trl.experimental.orpo", reason="TRL's ORPO is gone")
    from trl.experimental.orpo import ORPOTrainer

    logps = (-torch.rand(2, 5) * 3 - 0.01).requires_grad_()
    nll = torch.tensor(1.7)
    stand = SimpleNamespace(beta=0.2, accelerator=SimpleNamespace(device="cpu"))
    theirs = nll - ORPOTrainer.odds_ratio_loss(stand, *logps)[0].mean()
    mine = losses.orpo_loss(*logps, nll, beta=0.2)
    assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    gradients = [torch.autograd.grad(loss, logps)[0] for loss in (mine, theirs)]
    assert_close(*gradients, atol=1e-5, rtol=1e-5)


def test_orpo_is_finite_for_a_policy_that_is_almost_certain():
    logps = torch.tensor([[-1e-6], [-30.0]], requires_grad=True)
    loss = losses.orpo_loss(*logps, torch.tensor(0.0))
    loss.backward()
    assert loss.isfinite() and logps.grad.isfinite().all()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("used", ["both", "logps", "kl"])
def test_logps_and_the_exact_kl_match_autograd(temperature, used):
    torch.manual_seed(0)
    logits = torch.randn(50, 40, dtype=torch.float64, requires_grad=True)
    reference, tokens = torch.randn(50, 40, dtype=torch.float64), torch.randint(40, (50,))
    weights = torch.randn(2, 50, dtype=torch.float64)
    weights *= torch.tensor([[used != "kl"], [used != "logps"]])
    logp, logq = (x.div(temperature).log_softmax(-1) for x in (logits, reference))
    wanted = logp[range(50), tokens], (logp.exp() * (logp - logq)).sum(-1)
    found = losses.token_logps_and_kl_(logits * 1.0, reference.clone(), tokens, temperature)
    torch.testing.assert_close(found[:2], wanted)
    torch.testing.assert_close(found[2], logq[range(50), tokens])
    torch.testing.assert_close(
        losses.exact_kl(logits / temperature, reference / temperature), wanted[1]
    )

    def gradient(pair):
        loss = sum((part * weight).sum() for part, weight in zip(pair, weights, strict=True))
        return torch.autograd.grad(loss, logits)[0]

    torch.testing.assert_close(gradient(found[:2]), gradient(wanted))


def test_the_exact_kl_is_the_mean_of_k1_over_the_policys_own_tokens():
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.4, 0.4, 0.2])
    assert losses.exact_kl(p.log(), q.log()) == pytest.approx(float((p * (p / q).log()).sum()))
    assert losses.exact_kl(p.log(), p.log()) == pytest.approx(0.0, abs=1e-7)
