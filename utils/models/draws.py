"""Random numbers that follow from a seed and a purpose, so that no random state need be saved."""

import numpy as np
import torch

PROMPTS, DRAWS, SHUFFLES, HELD_OUT = range(4)  # streams of random numbers


def generator(seed: int, *purpose: int) -> torch.Generator:
    """Random numbers that depend on the seed and their purpose, and on nothing else."""
    state = np.random.SeedSequence((seed, *purpose)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))
