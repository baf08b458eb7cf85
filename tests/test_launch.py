"""Stages launched without Jupyter: two processes equal one, a killed run goes on, it is handed over.

As a program (`python tests/test_launch.py STAGE --output FOLDER`) it is the launcher with the tiny
models of chat_worker.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def small() -> None:
    """Shrink the lab profile and its stand-ins in this process."""
    import torch

    from tests import chat_worker
    from utils.course import profiles
    from utils.models import chat_standins

    torch.set_num_threads(1)
    chat_standins._pretrain = lambda *_: None
    chat_standins.SHAPE.update(chat_worker.SMALL)
    lab = profiles.TABLE["lab"]
    few = {"rows": 48, "batch_size": 4, "save_steps": 2, "epochs": 1}
    profiles.TABLE["lab"] = replace(
        lab,
        sft=replace(lab.sft, max_length=128, **few),
        dpo=replace(lab.dpo, sft_weight=0.0, **few),
        orpo=replace(lab.orpo, **few),
        policy=replace(lab.policy, adapt_epochs=1),
        ppo=replace(lab.ppo, updates=4, batch_size=16, minibatch_size=8),
        reward_model=replace(lab.reward_model, epochs=1),
    )


if __name__ == "__main__":
    from utils.finetune import launch

    small()
    launch.main()
