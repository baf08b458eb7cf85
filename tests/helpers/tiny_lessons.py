"""Profiles with the smallest numbers, so that every cell of a notebook runs in seconds.

The tests check that the cells run (on a device, with a user's data), not what a model learns.
"""

from dataclasses import replace
from pathlib import Path

from utils.course import profiles

FOLDER = str(Path(__file__).resolve().parent / "tiny")  # on PYTHONPATH it makes every profile tiny


def tiny(profile: profiles.Profile) -> profiles.Profile:
    """A profile of the same name, device and precision with the least training."""
    labelling = replace(profile.labelling, questions=200, held_out=8, draws=1, epochs=1)
    small = profile.small_dpo
    return replace(
        profile,
        reward_model=replace(profile.reward_model, epochs=1.0),
        policy=replace(profile.policy, adapt_epochs=1, held_out_prompts=60, base_samples=2),
        ppo=replace(
            profile.ppo,
            updates=2,
            batch_size=32,
            minibatch_size=16,
            max_new_tokens=8,
            value_updates=min(1, profile.ppo.value_updates),
        ),
        chat=replace(profile.chat, standin_tokens=4_000, max_new_tokens=12),
        sft=replace(profile.sft, rows=96, side_rows=24),
        dpo=replace(profile.dpo, rows=64, held_out=16),
        attributes=replace(
            profile.attributes, questions=4, reference_pairs=24, pairs=24, batch_size=4
        ),
        pair_mining=replace(profile.pair_mining, rows=min(2_000, profile.pair_mining.rows)),
        labelling=labelling,
        small_dpo=replace(small, sft_epochs=1, dpo_epochs=1, held_out=32, max_new_tokens=12),
    )


def shrink() -> None:
    """Make every profile of this process tiny, the quick ones too."""
    quick = profiles.quick
    for name, profile in profiles.TABLE.items():
        profiles.TABLE[name] = tiny(profile)
    profiles.quick = lambda profile: tiny(quick(profile))
