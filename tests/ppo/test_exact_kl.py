"""The exact KL in the loss, values trained alone at first, and two λ."""

import copy

import pytest
import torch

from tests.helpers import tiny_ppo
from utils import losses
from utils.ppo.trainer import PPOConfig

EXACT = {"kl_estimator": "exact", "whiten_advantages": False}


def state(model: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_the_loss_and_its_gradient_are_those_of_the_plain_formula():
    """One minibatch: clipped policy loss plus β times the KL over the vocabulary, per token."""
    base = tiny_ppo.policy(dropout=0.0)
    reference = tiny_ppo.drifted(copy.deepcopy(base), 0.1)
    settings = {**EXACT, "kl_coef": 0.4, "epochs": 1, "minibatch_size": 8, "max_grad_norm": 1e9}
    trainer = tiny_ppo.trainer({**settings, "value_coef": 0.0}, base, reference=reference)
    experience = trainer.experience(trainer.rollout())
    mask, policy = experience.rollout.mask, copy.deepcopy(base)

    def logits(model):
        attention = experience.rollout.attention
        out = model(
            input_ids=experience.rollout.tokens,
            attention_mask=attention.long(),
            position_ids=losses.positions(attention),
        ).logits
        return out[:, -mask.shape[1] - 1 : -1][mask]

    logp, logq = logits(policy.eval()).log_softmax(-1), logits(reference.eval()).log_softmax(-1)
    kl = (logp.exp() * (logp - logq)).sum(-1)
    torch.testing.assert_close(experience.kl[mask], kl.detach(), atol=1e-5, rtol=1e-4)
    chosen = logp.gather(-1, experience.rollout.responses[mask][:, None]).squeeze(-1)
    torch.testing.assert_close(experience.logps[mask], chosen.detach(), atol=1e-5, rtol=1e-4)
    ((-chosen * experience.advantages[mask]).mean() + 0.4 * kl.mean()).backward()

    found = {}
    trainer.optimizer.step = lambda *_: found.update(
        {name: p.grad.clone() for name, p in trainer.models.policy.named_parameters()}
    )
    metrics = trainer.update(experience)
    assert metrics["kl"] == pytest.approx(float(kl.detach().sum()) / 8, rel=1e-4)
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, atol=2e-5, rtol=1e-3)


def test_the_first_updates_train_only_the_values():
    settings = {**EXACT, "shared_value_head": False, "value_updates": 2, "updates": 3}
    trainer = tiny_ppo.trainer({**settings, "value_learning_rate": 1e-2})
    before, values = state(trainer.models.policy), state(trainer.models.critic)
    for _ in range(2):
        metrics = trainer.update(trainer.experience(trainer.rollout()))
        assert metrics["kl"] == pytest.approx(0.0, abs=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(before, state(trainer.models.policy), strict=True))
    assert any(
        not torch.equal(a, b) for a, b in zip(values, state(trainer.models.critic), strict=True)
    )
    trainer.update(trainer.experience(trainer.rollout()))
    assert any(
        not torch.equal(a, b) for a, b in zip(before, state(trainer.models.policy), strict=True)
    )


def test_a_run_that_stopped_among_the_first_updates_goes_on_as_if_it_had_not(tmp_path):
    settings = {**EXACT, "shared_value_head": False, "value_updates": 2, "updates": 4}
    settings["checkpoint_every"] = 1
    whole = tiny_ppo.trainer(settings, checkpoint_dir=tmp_path / "whole")
    whole.train()
    first = tiny_ppo.trainer(settings, checkpoint_dir=tmp_path / "cut")
    first.on_update = lambda metrics: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        first.train()
    again = tiny_ppo.trainer(settings, checkpoint_dir=tmp_path / "cut")
    again.train()
    pairs = zip(state(whole.models.policy), state(again.models.policy), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_values_targets_have_their_own_lambda():
    trainer = tiny_ppo.trainer({"lam": 0.5, "value_lam": 1.0, "whiten_advantages": False})
    torch.nn.init.normal_(trainer.models.critic["head"].weight)
    found = trainer.experience(trainer.rollout())
    advantages, _ = losses.gae(found.rewards, found.values, gamma=1.0, lam=0.5)
    _, returns = losses.gae(found.rewards, found.values, gamma=1.0, lam=1.0)
    torch.testing.assert_close(found.advantages, advantages)
    torch.testing.assert_close(found.returns, returns)


@pytest.mark.parametrize(
    "wrong",
    [
        {"kl_estimator": "exact"},
        {"value_updates": 3},
        {"kl_estimator": "k2"},
        {"target_kl": 0.0},
        {"target_kl": 1.0, "kl_horizon": 50},
    ],
    ids=["whitening", "shared trunk", "unknown", "no target", "short horizon"],
)
def test_settings_that_contradict_each_other_are_refused(wrong):
    with pytest.raises(ValueError, match="PPOConfig"):
        PPOConfig(**wrong)
