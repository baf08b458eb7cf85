"""How often a policy writes each attribute of utils/data/attributes.py, and how often it should.

A policy is reduced to what it does with the attributes: for one question and content, the
probabilities of the 16 texts with these attributes, which add up to 1. They are computed and not
sampled, so that a difference from the prediction is the policy's and not the sample's.
"""

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from utils.data.attributes import COMBINATIONS, with_attributes
from utils.models.chat import answer_logps

PRESENT = torch.tensor(COMBINATIONS, dtype=torch.float64)  # (16, attributes)


def combination_logps(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Dataset
) -> Tensor:
    """ln π(attributes | question, content) of each row and combination: (rows, 16)."""
    texts = [with_attributes(answer, each) for answer in rows["chosen"] for each in COMBINATIONS]
    questions = [question for question in rows["question"] for _ in COMBINATIONS]
    logps, _ = answer_logps(model, tokenizer, questions, texts)
    return logps.double().view(len(rows), len(COMBINATIONS)).log_softmax(1)


def predicted(reference: Tensor, worth: float, beta: float) -> Tensor:
    """The policy that maximises reward minus β · KL: π_ref · exp(reward / β), normalised."""
    return (reference + worth * PRESENT.sum(1) / beta).log_softmax(1)


def attribute_rates(logps: Tensor) -> Tensor:
    """The probability of each attribute, averaged over the rows: (attributes,)."""
    return (logps.exp() @ PRESENT).mean(0)


def divergence(policy: Tensor, reference: Tensor) -> float:
    """KL(policy ‖ reference) of the attributes in nats per answer, averaged over the rows."""
    return float((policy.exp() * (policy - reference)).sum(1).mean())
