"""Random numbers that depend only on a seed and a purpose, so no random state must be saved."""

import numpy as np
import torch

PROMPTS, DRAWS, SHUFFLES, HELD_OUT = range(4)  # streams of random numbers


def generator(seed: int, *purpose: int) -> torch.Generator:
    """A generator whose numbers depend only on the seed and the purpose."""
    state = np.random.SeedSequence((seed, *purpose)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))
