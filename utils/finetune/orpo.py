"""ORPO with TRL's data handling: supervised loss and odds ratio in one stage, no reference."""

import torch
from torch import Tensor

from utils.finetune.shared_prompt import SharedPromptDPOTrainer, pair_logps
from utils.losses import orpo_loss


def answer_means(
    model: torch.nn.Module, inputs: dict[str, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean ln π per token of chosen and of rejected answers, (batch,) each, and the SFT loss."""
    logps, mask = pair_logps(model, inputs)  # (2 · batch, sequence - 1), chosen rows first
    chosen, rejected = (logps.sum(1) / mask.sum(1)).chunk(2)
    pairs = len(chosen)
    nll = -logps[:pairs].sum() / mask[:pairs].sum()  # this batch's tokens have equal weight
    return chosen, rejected, nll


class ORPOTrainer(SharedPromptDPOTrainer):
    """TRL's DPOTrainer with ORPO's loss; `beta` of its config is the weight of the odds ratio."""

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: int | None = None,
    ) -> Tensor:
        """The loss of one batch; its metrics replace TRL's, and cover this process's rows only."""
        chosen, rejected, nll = answer_means(model, inputs)
        loss = orpo_loss(chosen, rejected, nll, beta=self.beta)
        seen = self._metrics["train" if self.model.training else "eval"]
        seen["nll"].append(nll.item())
        seen["logps/chosen"].append(chosen.mean().item())
        seen["logps/rejected"].append(rejected.mean().item())
        seen["rewards/accuracies"].append((chosen > rejected).float().mean().item())
        return loss
