"""TRL's fused output layer on a CPU; tests/gpu/inside_course.py tests it with Triton."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from trl.trainer import utils as trl_utils

from utils.models import kernels


def test_on_a_cpu_trl_computes_only_the_logits_of_learned_tokens(monkeypatch):
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=40, num_attention_heads=2, **shape))
    ids = torch.randint(0, 40, (3, 9))
    labels = ids.masked_fill(torch.arange(9) < 5, -100)  # four learned tokens per row
    logps = model(ids).logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
    wanted = logps.masked_fill(labels[:, 1:] == -100, 0)
    rows, gradients, head = [], [], trl_utils._ChunkedLogProbFunction

    class Counted:
        @staticmethod
        def apply(hidden, *others):
            rows.append(len(hidden))
            return head.apply(hidden, *others)

    monkeypatch.setattr(trl_utils, "_ChunkedLogProbFunction", Counted)
    kernels.check_triton.cache_clear()
    kernels.check_triton()
    trl_utils.add_fused_lm_head(model)
    found = model(input_ids=ids, labels=labels, fused_lm_head=True).log_probs
    assert rows == [12]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    for loss in (found.sum(), wanted.sum()):
        model.zero_grad()
        loss.backward()
        gradients.append(model.model.layers[0].mlp.up_proj.weight.grad.clone())
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)
