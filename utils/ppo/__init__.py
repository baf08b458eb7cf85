"""PPO in nine numbered steps, and the modules it uses: policy, sampling, rewards, processes."""

from utils.door import door

__getattr__, __all__ = door(
    __name__,
    {
        "policy": ["ActorCritic"],
        "rewards": ["Reward", "RewardError"],
        "trainer": ["PPOConfig", "PPOTrainer", "TrainingStopped", "adapted_kl_coef"],
    },
)
