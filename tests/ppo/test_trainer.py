"""The PPO trainer, detail by detail, and whole updates against a slow implementation."""

import copy
import doctest
import math
import subprocess
import sys
import warnings
from dataclasses import replace

import peft
import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, Gemma2Config, StaticCache

from tests.helpers import reference_ppo, tiny_ppo
from utils import losses, ppo
from utils.course import progress
from utils.course.paths import ROOT
from utils.models import logprobs
from utils.models.draws import DRAWS, generator
from utils.ppo import rewards, sampling

ARCHITECTURES = ["gpt2", "llama", "qwen2"]


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_docstring_examples():
    found = doctest.testmod(logprobs, extraglobs={"torch": torch})
    assert found.attempted > 0 and found.failed == 0


# --- 1 Rollout -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_sampling_with_the_cache_equals_sampling_each_prompt_alone_without_it(kind):
    trainer = tiny_ppo.trainer(model=tiny_ppo.policy(kind, end_bias=2.0))
    rollout = trainer.rollout()
    assert rollout.ended.any() and not rollout.ended.all()
    draws = torch.rand((8, 6), generator=generator(3, DRAWS, 0))
    with torch.no_grad(), sampling.dropout_off(trainer.models.policy):
        for row in range(8):
            prompt = rollout.tokens[row][rollout.attention[row]][: -int(rollout.mask[row].sum())]
            tokens = prompt.tolist()
            for t in range(int(rollout.mask[row].sum())):
                logits = trainer.models.policy(torch.tensor([tokens])).logits[0, -1]
                cumulative = logits.double().softmax(-1).cumsum(-1)
                tokens.append(int((cumulative <= draws[row, t]).sum()))
            assert tokens == rollout.tokens[row][rollout.attention[row]].tolist()


def test_masks_stop_after_the_first_end_and_padding_follows():
    rollout = tiny_ppo.trainer(model=tiny_ppo.policy(end_bias=2.0)).rollout()
    for response, mask, ended in zip(rollout.responses, rollout.mask, rollout.ended, strict=True):
        kept = response[mask].tolist()
        assert tiny_ppo.END not in kept[:-1]
        assert ended == (kept[-1] == tiny_ppo.END)
        assert ended or len(kept) == 6
        assert (response[~mask] == 1).all()


def test_rows_that_ended_leave_the_batch():
    trainer = tiny_ppo.trainer(model=tiny_ppo.policy(end_bias=3.0))
    batches = []
    hook = trainer.models.trunk.register_forward_pre_hook(
        lambda module, args, inputs: batches.append(len(inputs["input_ids"])), with_kwargs=True
    )
    rollout = trainer.rollout()
    hook.remove()
    alive = [8] + [int(rollout.mask[:, t].sum()) for t in range(1, 6)]
    assert batches == [rows for rows in alive if rows]
    assert min(batches) < 8


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_static_cache_of_cuda_samples_the_same(kind):
    trainer = tiny_ppo.trainer(model=tiny_ppo.policy(kind, end_bias=2.0))
    plain = trainer.rollout()
    room = max(map(len, trainer.prompts)) + 6
    trainer.models.static = (
        trainer.models.trunk,
        StaticCache(config=trainer.models.trunk.config, max_cache_len=room),
    )
    for _ in range(2):  # the second time with a cache that was used before
        static = trainer.rollout()
        assert_close(static.responses, plain.responses)
        assert_close(static.mask, plain.mask)


def test_the_static_step_is_one_graph_that_is_never_compiled_again():
    trainer = tiny_ppo.trainer(model=tiny_ppo.policy("llama"))
    plain = trainer.rollout()
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    step = torch.compile(trainer.models.trunk, backend=count, fullgraph=True, dynamic=False)
    room = max(map(len, trainer.prompts)) + 6
    trainer.models.static = (
        step,
        StaticCache(config=trainer.models.trunk.config, max_cache_len=room),
    )
    for _ in range(3):
        assert_close(trainer.rollout().responses, plain.responses)
    assert len(graphs) == 1


def test_sampling_survives_a_compiler_that_fails():
    trainer = tiny_ppo.trainer()
    plain = trainer.rollout()

    def broken(**_):
        raise RuntimeError("no Triton here")

    trainer.models.static = (
        broken,
        StaticCache(config=trainer.models.trunk.config, max_cache_len=20),
    )
    with pytest.warns(UserWarning, match=r"without torch\.compile: no Triton here"):
        assert_close(trainer.rollout().responses, plain.responses)
    assert trainer.models.static is None


def test_every_pass_takes_each_prompt_once():
    rows = torch.cat([sampling.prompt_rows(5, 8, seed=3, update=update) for update in range(5)])
    for start in range(0, 40, 5):
        assert sorted(rows[start : start + 5].tolist()) == [0, 1, 2, 3, 4]
    assert len({tuple(rows[s : s + 5].tolist()) for s in range(0, 40, 5)}) > 1


def test_temperature_is_the_same_in_sampling_and_scoring():
    trainer = tiny_ppo.trainer({"temperature": 1e-3})
    rollout = trainer.rollout()
    logps, _ = trainer.models.logps_and_values(rollout, torch.arange(8))
    assert logps.min() > -1e-3  # at a temperature near 0, the best token has probability 1
    warm = tiny_ppo.trainer({"temperature": 2.0})
    rollout = warm.rollout()
    logps, _ = warm.models.logps_and_values(rollout, torch.arange(8))
    prompt = rollout.tokens[0][rollout.attention[0]][:-6].tolist()
    with sampling.dropout_off(warm.models.policy):
        slow, _ = reference_ppo.episode_logps(
            warm.models.policy, prompt, rollout.responses[0].tolist(), temperature=2.0
        )
    assert_close(logps[:6], torch.stack(slow).float())


# --- 2 Reward ------------------------------------------------------------------------------------


def test_the_reward_reads_prompt_and_response_as_text():
    trainer = tiny_ppo.trainer(model=tiny_ppo.policy(end_bias=2.0))
    rollout = trainer.rollout()
    texts = trainer.models.texts(rollout)
    rows = sampling.prompt_rows(5, len(rollout.tokens), trainer.config.seed, 0)
    for row, text, length in zip(rows, texts, rollout.mask.sum(1), strict=True):
        assert text.startswith(tiny_ppo.PROMPTS[row])
        words = len(text.split()) - len(tiny_ppo.PROMPTS[row].split())
        assert length - 1 <= words <= length  # the end-of-text token is not a word


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (lambda text: math.nan, "returned nan"),
        (lambda text: -math.inf, "returned -inf"),
        (lambda text: 1 / 0, r"raised ZeroDivisionError \(division by zero\)"),
        (lambda text: None, "raised TypeError"),
    ],
)
def test_a_reward_that_fails_on_one_text_names_it(answer, problem):
    def reward(texts):
        return [answer(text) if text == "xấu" else 1.0 for text in texts]

    texts = ["a", "b", "c", "xấu", "e", "f", "g"]
    with pytest.raises(
        rewards.RewardError, match=rf"The reward {problem}.* on the text 'xấu': make"
    ):
        rewards.score_texts(reward, texts)


def test_a_reward_of_the_wrong_length_names_the_text_that_it_drops():
    def reward(texts):
        return [1.0 for text in texts if text]

    with pytest.raises(rewards.RewardError, match=r"shape \(0,\) for 1 texts on the text '': make"):
        rewards.score_texts(reward, ["a", "b", "", "d"])


def test_a_reward_that_fails_only_on_whole_batches_says_so():
    def reward(texts):
        if len(texts) > 2:
            raise MemoryError("too many")
        return [0.0] * len(texts)

    with pytest.raises(
        rewards.RewardError, match=r"MemoryError \(too many\) on the text 'a' and 3"
    ):
        rewards.score_texts(reward, ["a", "b", "c", "d"])


def test_rewards_may_be_lists_or_tensors():
    assert_close(
        rewards.score_texts(lambda texts: torch.ones(2).double(), ["a", "b"]), torch.ones(2)
    )
    assert_close(rewards.score_texts(lambda texts: (1, 2), ["a", "b"]), torch.tensor([1.0, 2.0]))


def test_a_reward_may_come_out_of_inference_mode():
    trainer = tiny_ppo.trainer({"updates": 1, "whiten_rewards": True})
    trainer.reward = torch.inference_mode()(lambda texts: torch.randn(len(texts)))
    assert math.isfinite(trainer.train()[0]["policy_loss"])


def test_cap_and_missing_end_penalty_change_the_last_token_only():
    model = tiny_ppo.policy(end_bias=2.0)
    plain = tiny_ppo.trainer(model=copy.deepcopy(model))
    changed = tiny_ppo.trainer({"reward_cap": 0.25, "missing_eos_penalty": 2.0}, model)
    rollout = plain.rollout()
    before, after = plain.experience(rollout), changed.experience(rollout)
    assert_close(before.scores, after.scores)  # metrics use the reward's original scores
    expected = before.scores.clamp(-0.25, 0.25) - 2.0 * ~rollout.ended - before.scores
    difference = after.rewards - before.rewards
    last = rollout.mask.sum(1, keepdim=True) - 1
    assert_close(difference.gather(1, last).squeeze(1), expected, atol=1e-6, rtol=0)
    assert_close(difference.sum(1), expected, atol=1e-6, rtol=0)


# --- 3 to 9, against the slow implementation -----------------------------------------------------

SETTINGS = [
    {"whiten_advantages": False},
    {"kl_estimator": "k3", "lam": 0.9, "gamma": 0.95, "missing_eos_penalty": 0.5},
    {"whiten_rewards": True, "reward_cap": 0.5, "temperature": 0.7, "value_clip_range": None},
]


def episodes_of(trainer, rollout, experience) -> list[dict]:
    """The rollout as unpadded lists, scored by float64 copies of the models."""
    policy = copy.deepcopy(trainer.models.policy).double().eval()
    reference = copy.deepcopy(trainer.models.reference).double().eval()
    temperature, head = trainer.config.temperature, trainer.models.critic["head"]
    episodes = []
    for row in range(len(rollout.tokens)):
        response = rollout.responses[row][rollout.mask[row]].tolist()
        prompt = rollout.tokens[row][rollout.attention[row]].tolist()[: -len(response)]
        logps, states = reference_ppo.episode_logps(policy, prompt, response, temperature)
        with torch.no_grad():
            other, _ = reference_ppo.episode_logps(reference, prompt, response, temperature)
        text = trainer.models.tokenizer.decode(prompt + response, skip_special_tokens=True)
        episode = {"logps": logps, "reference_logps": other, "policy": policy}
        episode["values"] = [s @ head.weight[0].double() + head.bias[0].double() for s in states]
        episode |= {"score": tiny_ppo.reward([text])[0], "ended": response[-1] == tiny_ppo.END}
        episodes.append(episode)
    return episodes


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_one_update_equals_the_slow_implementation_in_values_and_gradients(kind, settings):
    changes = {"minibatch_size": 8, "epochs": 1, "max_grad_norm": 1e9, "learning_rate": 1e-9}
    model = tiny_ppo.policy(kind, end_bias=1.5)
    trainer = tiny_ppo.trainer(changes | settings, model)
    tiny_ppo.drifted(trainer.models.policy)
    torch.manual_seed(5)
    torch.nn.init.normal_(trainer.models.critic["head"].weight, std=0.3)
    rollout = trainer.rollout()
    experience = trainer.experience(rollout)
    episodes = episodes_of(trainer, rollout, experience)
    config = trainer.config
    reference_ppo.learn(episodes, config, config.kl_coef)
    for row, episode in enumerate(episodes):
        for name in ("logps", "reference_logps", "values", "rewards", "advantages", "returns"):
            slow = torch.tensor([reference_ppo.number(x) for x in episode[name]])
            mine = getattr(experience, name)[row][rollout.mask[row]]
            assert_close(mine, slow, atol=2e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")

    metrics = trainer.update(experience)
    policy_terms, value_terms = [], []
    for e in episodes:
        for t in range(len(e["logps"])):
            old = reference_ppo.number(e["logps"][t])
            policy_terms.append(
                reference_ppo.policy_loss(e["logps"][t], old, e["advantages"][t], config.clip_range)
            )
            value_terms.append(
                reference_ppo.value_loss(
                    e["values"][t],
                    reference_ppo.number(e["values"][t]),
                    e["returns"][t],
                    config.value_clip_range,
                )
            )
    policy_loss, value_loss = (sum(x) / len(x) for x in (policy_terms, value_terms))
    assert metrics["policy_loss"] == pytest.approx(policy_loss.item(), abs=1e-5)
    assert metrics["value_loss"] == pytest.approx(value_loss.item(), abs=1e-5)
    (policy_loss + config.value_coef * value_loss).backward()
    slow_gradients = dict(episodes[0]["policy"].named_parameters())
    for name, parameter in trainer.models.policy.named_parameters():
        assert_close(parameter.grad.double(), slow_gradients[name].grad, atol=1e-5, rtol=1e-3)
    kls = [
        sum(
            reference_ppo.number(a - b)
            for a, b in zip(e["logps"], e["reference_logps"], strict=True)
        )
        for e in episodes
    ]
    assert metrics["kl"] == pytest.approx(sum(kls) / len(kls), abs=1e-4)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_padding_on_the_left_changes_nothing(kind):
    trainer = tiny_ppo.trainer(model=tiny_ppo.policy(kind))
    rollout = trainer.rollout()
    padded = sampling.Rollout(
        torch.nn.functional.pad(rollout.tokens, (3, 0), value=1),
        torch.nn.functional.pad(rollout.attention, (3, 0), value=False),
        rollout.mask,
        rollout.ended,
    )
    together, _ = trainer.models.logps_and_values(padded, torch.arange(8))
    alone = torch.cat(
        [trainer.models.logps_and_values(rollout, torch.tensor([i]))[0] for i in range(8)]
    )
    assert_close(together, alone, atol=1e-5, rtol=1e-5)


def recorded_ratios(trainer, monkeypatch) -> list[torch.Tensor]:
    ratios, original = [], losses.clipped_policy_loss

    def record(logps, old_logps, *rest):
        ratios.append((logps - old_logps).exp().detach())
        return original(logps, old_logps, *rest)

    monkeypatch.setattr(losses, "clipped_policy_loss", record)
    trainer.update(trainer.experience(trainer.rollout()))
    return ratios


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_first_ratio_is_exactly_one(monkeypatch, precision):
    ratios = recorded_ratios(tiny_ppo.trainer({"precision": precision}), monkeypatch)
    assert (ratios[0] == 1).all()
    assert all((ratio != 1).any() for ratio in ratios[1:])


def test_without_learning_every_ratio_is_one(monkeypatch):
    ratios = recorded_ratios(tiny_ppo.trainer({"learning_rate": 1e-30}), monkeypatch)
    assert (ratios[0] == 1).all() and (ratios[1] == 1).all()  # the first epoch repeats the scoring
    assert all((ratio - 1).abs().max() < 1e-5 for ratio in ratios)


def test_dropout_is_off_inside_and_back_on_outside():
    model = tiny_ppo.policy(dropout=0.5)
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    trainer = tiny_ppo.trainer({"updates": 1, "learning_rate": 1e-30}, model)
    rollout = trainer.rollout()
    first, _ = trainer.models.logps_and_values(rollout, torch.arange(8))
    second, _ = trainer.models.logps_and_values(rollout, torch.arange(8))
    assert (first == second).all()
    trainer.train()
    trainer.models.generate(["w3"])
    assert [module.training for module in model.modules()] == modes


def test_kl_coef_adapts_towards_the_target_and_stays_when_fixed():
    config = tiny_ppo.config(target_kl=2.0, kl_horizon=80)  # 8 episodes: a tenth of the horizon
    assert ppo.adapted_kl_coef(0.1, 2.2, config) == pytest.approx(0.1 * 1.01)
    assert ppo.adapted_kl_coef(0.1, 100.0, config) == pytest.approx(0.1 * 1.02)
    assert ppo.adapted_kl_coef(0.1, -5.0, config) == pytest.approx(0.1 * 0.98)
    assert ppo.adapted_kl_coef(0.1, 100.0, tiny_ppo.config()) == 0.1
    history = tiny_ppo.trainer({"target_kl": 1e-6, "kl_horizon": 8}).train()
    assert history[0]["kl_coef"] == 0.1
    assert history[-1]["kl_coef"] > 0.15


def test_clipping_stops_the_policy_from_running_away_on_one_batch():
    settings = {"epochs": 20, "batch_size": 8, "minibatch_size": 8, "learning_rate": 3e-3}
    moved = {}
    for clip in (0.05, 1e9):
        trainer = tiny_ppo.trainer(settings | {"clip_range": clip})
        experience = trainer.experience(trainer.rollout())
        trainer.update(experience)
        logps, _ = trainer.models.logps_and_values(experience.rollout, torch.arange(8))
        old = experience.logps[experience.rollout.mask]
        moved[clip] = ((logps - old).exp() - 1).abs().mean().item()
    assert moved[0.05] < moved[1e9] / 2


# --- The whole trainer ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_reward_rises(kind):
    changes = {"updates": 25, "batch_size": 32, "minibatch_size": 16, "learning_rate": 5e-3}
    history = tiny_ppo.trainer(changes | {"kl_coef": 0.02}, tiny_ppo.policy(kind)).train()
    first = sum(m["reward"] for m in history[:3]) / 3
    last = sum(m["reward"] for m in history[-3:]) / 3
    assert last > first + 0.5
    assert history[-1]["episodes"] == 25 * 32 and history[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert set(history[0]) == {
        *("update", "episodes", "reward", "kl", "length", "eos_rate", "entropy", "kl_coef"),
        *("policy_loss", "value_loss", "clip_fraction", "approximate_kl", "grad_norm"),
        *("explained_variance", "seconds"),
    }


def test_the_same_seed_gives_the_same_metrics_and_another_seed_others():
    runs = [
        [m | {"seconds": 0} for m in tiny_ppo.trainer({"seed": seed, "updates": 2}).train()]
        for seed in (3, 3, 4)
    ]
    assert runs[0] == runs[1] != runs[2]


def test_the_entropy_metric_estimates_the_entropy():
    trainer = tiny_ppo.trainer({"batch_size": 512, "minibatch_size": 128, "max_new_tokens": 1})
    rollout = trainer.rollout()
    metrics = trainer.describe(trainer.experience(rollout))
    with torch.no_grad(), sampling.dropout_off(trainer.models.policy):
        exact = []
        for prompt in trainer.prompts:
            p = trainer.models.policy(torch.tensor([prompt])).logits[0, -1].softmax(-1)
            exact.append(-(p * p.log()).sum())
    rows = sampling.prompt_rows(5, len(rollout.tokens), trainer.config.seed, 0)
    assert metrics["entropy"] == pytest.approx(torch.stack(exact)[rows].mean().item(), abs=0.1)


def test_approximate_kl_and_gradient_norm_by_hand():
    """With one step, the policy has not changed yet when it learns, and there is one gradient."""
    settings = {"minibatch_size": 8, "epochs": 1, "max_grad_norm": 1e9}
    trainer = tiny_ppo.trainer(settings)
    metrics = trainer.update(trainer.experience(trainer.rollout()))
    whole = torch.cat([p.grad.flatten() for p in trainer.parameters.values()])
    assert metrics["grad_norm"] == pytest.approx(whole.norm().item(), rel=1e-5)
    assert metrics["approximate_kl"] == 0.0

    trainer = tiny_ppo.trainer({"minibatch_size": 8, "epochs": 2, "learning_rate": 0.01})
    experience, moved = trainer.experience(trainer.rollout()), []
    step = trainer.step

    def record(loss):
        logps, _ = trainer.models.logps_and_values(experience.rollout, torch.arange(8))
        moved.append((logps - experience.logps[experience.rollout.mask]).detach())
        return step(loss)

    trainer.step = record
    metrics = trainer.update(experience)
    by_hand = [(d.double().exp() - 1 - d.double()).mean().item() for d in moved]
    assert by_hand[0] == pytest.approx(0, abs=1e-9) and by_hand[1] > 1e-5
    assert metrics["approximate_kl"] == pytest.approx(sum(by_hand) / 2, rel=1e-3)


def test_explained_variance_is_1_for_perfect_values_and_0_for_constant_ones():
    trainer = tiny_ppo.trainer()
    experience = trainer.experience(trainer.rollout())
    found = {}
    for name, values in {
        "perfect": experience.returns,
        "constant": torch.full_like(experience.returns, 3.0),
        "mirrored": -experience.returns,
    }.items():
        found[name] = trainer.describe(replace(experience, values=values))["explained_variance"]
    assert found["perfect"] == pytest.approx(1.0)
    assert found["constant"] == pytest.approx(0.0, abs=1e-5)
    assert found["mirrored"] == pytest.approx(-3.0, rel=1e-4)  # the error is twice the return


def test_a_separate_value_model_leaves_the_policy_to_the_policy_loss():
    changes = {"epochs": 1, "minibatch_size": 8, "max_grad_norm": 1e9, "value_coef": 10.0}
    gradients = {}
    for value_coef in (0.1, 10.0):
        model = tiny_ppo.policy()
        settings = changes | {"value_coef": value_coef, "shared_value_head": False}
        trainer = tiny_ppo.trainer(settings, model)
        torch.nn.init.ones_(trainer.models.critic["head"].weight)
        trainer.update(trainer.experience(trainer.rollout()))
        gradients[value_coef] = torch.cat([p.grad.flatten() for p in model.parameters()])
        critic = next(trainer.models.critic["trunk"].parameters())
        assert critic.grad.abs().sum() > 0
        assert critic.data_ptr() != next(model.parameters()).data_ptr()
    assert_close(gradients[0.1], gradients[10.0])


def test_under_peft_only_the_adapter_learns_and_the_reference_is_the_adapter_off():
    base = tiny_ppo.policy("llama")
    frozen = copy.deepcopy(base.state_dict())
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.3)
    model = peft.get_peft_model(base, config)
    trainer = tiny_ppo.trainer({"updates": 3}, model)
    assert trainer.models.reference is None
    history = trainer.train()
    assert history[0]["kl"] == pytest.approx(0, abs=1e-6) and abs(history[-1]["kl"]) > 1e-4
    after = model.unload().state_dict()
    assert all((after[name] == value).all() for name, value in frozen.items())
    assert all("lora" in name or name.startswith("critic") for name in trainer.parameters)


def test_a_given_reference_is_used_and_frozen():
    reference = tiny_ppo.drifted(tiny_ppo.policy())
    trainer = tiny_ppo.trainer(reference=reference)
    experience = trainer.experience(trainer.rollout())
    assert (experience.logps - experience.reference_logps).abs().max() > 1e-3
    assert not any(p.requires_grad for p in reference.parameters())


def test_held_out_texts_depend_on_the_seed_and_not_on_the_batching():
    prompts = [*tiny_ppo.PROMPTS, "w3"]
    texts = tiny_ppo.trainer({"batch_size": 2, "minibatch_size": 2}).models.generate(
        prompts, seed=1
    )
    trainer = tiny_ppo.trainer({"batch_size": 8, "minibatch_size": 8})
    again, other = (trainer.models.generate(prompts, seed=seed) for seed in (1, 2))
    assert again == texts != other
    assert all(text.startswith(prompt) for text, prompt in zip(texts, prompts, strict=True))
    tiny_ppo.drifted(trainer.models.policy, 0.3)
    assert trainer.models.generate(prompts, seed=1) != texts
    assert trainer.models.generate(prompts, seed=1, from_reference=True) == texts


def test_evaluation_reports_reward_and_kl_of_each_text():
    trainer = tiny_ppo.trainer()
    before = trainer.evaluate(tiny_ppo.PROMPTS, seed=1)
    assert before["texts"] == trainer.models.generate(tiny_ppo.PROMPTS, seed=1)
    assert before["rewards"] == pytest.approx(tiny_ppo.reward(before["texts"]))
    assert before["kl"] == pytest.approx([0.0] * 5, abs=1e-5)
    tiny_ppo.drifted(trainer.models.policy, 0.1)
    after = trainer.evaluate(tiny_ppo.PROMPTS * 20, seed=1)
    assert sum(after["kl"]) > 0 and {len(column) for column in after.values()} == {100}


def test_a_context_without_room_for_a_prompt_is_named():
    with pytest.raises(ValueError, match="max_new_tokens is 64, and the policy accepts 64 tokens"):
        tiny_ppo.trainer({"max_new_tokens": 64})


def test_prompts_may_be_token_ids_and_never_end_with_the_end_token():
    encode = tiny_ppo.trainer().models.encode
    assert encode([[3, 4], [3, 4, tiny_ppo.END]]) == encode(["w3 w4"]) * 2


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "There are no prompts"),
        (["w3", ""], r"The prompt '' has 0 tokens.*accepts 1 to 58: change or remove"),
        (["w3 " * 59], "has 59 tokens"),
    ],
)
def test_prompts_that_cannot_be_used_are_named(prompts, message):
    with pytest.raises(ValueError, match=message):
        tiny_ppo.trainer().models.encode(prompts)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"temperature": 0.0}, "temperature is 0"),
        ({"minibatch_size": 3}, "8 is not a multiple of minibatch_size 3"),
        ({"precision": "int8"}, "'int8': use one of fp32, bf16, fp16"),
        ({"kl_estimator": "k2"}, "'k2': use one of k1, k3"),
        ({"value_updates": 6, "updates": 6}, "value_updates 6 leaves no update for the policy"),
    ],
)
def test_settings_that_cannot_work_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_ppo.config(**changes)


def test_a_reference_that_is_the_policy_is_refused():
    model = tiny_ppo.policy()
    with pytest.raises(ValueError, match="The reference is the policy itself"):
        tiny_ppo.trainer(model=model, reference=model)


def test_fp16_wants_float32_parameters():
    with pytest.raises(ValueError, match=r"cast them with `\.float\(\)`"):
        tiny_ppo.trainer({"precision": "fp16"}, tiny_ppo.policy().half())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_learns_too(precision):
    trainer = tiny_ppo.trainer({"updates": 2, "precision": precision})
    before = {name: p.detach().clone() for name, p in trainer.parameters.items()}
    history = trainer.train()
    assert all(math.isfinite(value) for value in history[-1].values())
    assert any((p != before[name]).any() for name, p in trainer.parameters.items())


def test_a_bfloat16_policy_can_be_trained():
    trainer = tiny_ppo.trainer({"updates": 1}, tiny_ppo.policy("llama").bfloat16())
    assert math.isfinite(trainer.train()[0]["value_loss"])


def test_a_model_with_capped_logits_is_refused():
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma2Config(
        vocab_size=40, head_dim=16, num_key_value_heads=1, intermediate_size=32, **size
    )
    config.final_logit_softcapping = 0.5
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    torch.nn.init.normal_(model.get_output_embeddings().weight)
    with pytest.raises(ValueError, match="Gemma2ForCausalLM changes its logits"):
        tiny_ppo.trainer(model=model)


def test_a_kl_explosion_stops_with_advice_and_keeps_the_checkpoints(tmp_path):
    changes = {"kl_limit": 0.5, "learning_rate": 0.1, "kl_coef": 0.0, "checkpoint_every": 1}
    trainer = tiny_ppo.trainer(changes, checkpoint_dir=tmp_path)
    with pytest.raises(
        ppo.TrainingStopped, match=r"above kl_limit 0\.5: raise kl_coef \(0\) or lower learning"
    ):
        trainer.train()
    kept = sorted(folder.name for folder in tmp_path.glob("update-*"))
    assert kept and int(kept[-1][-6:]) == trainer.updates_done


def test_a_policy_that_turns_to_nan_stops_before_the_optimiser_steps():
    trainer = tiny_ppo.trainer()
    experience = trainer.experience(trainer.rollout())
    before = {name: p.detach().clone() for name, p in trainer.parameters.items()}
    experience.returns.fill_(math.nan)
    with pytest.raises(ppo.TrainingStopped, match="the loss is nan: lower learning_rate"):
        trainer.update(experience)
    assert all((p == before[name]).all() for name, p in trainer.parameters.items())
    with torch.no_grad():
        next(trainer.models.policy.parameters()).fill_(math.nan)
    with pytest.raises(ppo.TrainingStopped, match="the KL to the reference is nan"):
        trainer.train()


def test_nothing_is_printed_without_the_progress_bar(capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny_ppo.trainer({"updates": 1}).train()
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err == ""


def test_the_progress_bar_shows_reward_kl_and_the_extra_metrics(monkeypatch):
    shown = {}

    class Bar(progress.tqdm):
        def set_postfix(self, **figures):
            shown.update(figures, total=self.total, hidden=self.disable)

    monkeypatch.setattr(progress, "tqdm", Bar)
    monkeypatch.setattr(progress, "live", lambda: True)

    def extra(experience):
        return {"negative_rate": (experience.scores > 0).float().mean().item()}

    history = tiny_ppo.trainer({"updates": 1}, progress=True, extra_metrics=extra).train()
    assert 0 < history[0]["negative_rate"] < 1
    assert set(shown) == {"reward", "kl", "negative_rate", "total", "hidden"}
    assert shown["total"] == 1 and not shown["hidden"]


def test_on_update_receives_the_metrics_of_each_update():
    seen = []
    history = tiny_ppo.trainer({"updates": 3}, on_update=seen.append).train()
    assert seen == history and [m["update"] for m in seen] == [1, 2, 3]


PROGRAM = """
import sys
from tests.helpers import tiny_ppo
tiny_ppo.trainer({"updates": 1}, checkpoint_dir=sys.argv[1]).train()
print(*sorted(name for name in sys.modules if name.split(".")[0] == "utils"))
"""


def test_the_room_can_be_lifted_out_with_a_few_small_modules(tmp_path):
    """A whole update with a checkpoint loads these modules of the course and no other."""
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    room = {f"utils.ppo.{path.stem}" for path in (ROOT / "utils" / "ppo").glob("[a-z]*.py")}
    assert set(ran.stdout.split()) == room | {
        *("utils", "utils.door", "utils.losses", "utils.ppo"),
        *("utils.course", "utils.course.errors", "utils.course.folders", "utils.course.progress"),
        *("utils.course.language", "utils.course.paths"),  # messages in two languages
        *("utils.models", "utils.models.draws", "utils.models.logprobs", "utils.models.memory"),
        "utils.models.precision",
    }
