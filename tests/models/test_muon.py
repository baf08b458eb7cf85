"""Our Muon takes torch's steps, with the digits of fp32."""

import pytest
import torch

from utils.models.muon import Muon, orthogonal


def test_its_steps_are_those_of_torch_up_to_the_rounding_of_bf16():
    draw = torch.Generator().manual_seed(0)
    starts = [torch.randn(shape, generator=draw) for shape in ((16, 24), (24, 16), (8, 8))]
    gradients = [[torch.randn(w.shape, generator=draw) for w in starts] for _ in range(4)]
    found = {}
    for kind in (Muon, torch.optim.Muon):
        weights = [torch.nn.Parameter(w.clone()) for w in starts]
        optimizer = kind(weights, lr=0.1, weight_decay=0.05)
        for step in gradients:
            for weight, gradient in zip(weights, step, strict=True):
                weight.grad = gradient.clone()
            optimizer.step()
        found[kind] = weights
    for start, ours, theirs in zip(starts, found[Muon], found[torch.optim.Muon], strict=True):
        way = (theirs - start).norm()
        assert (ours - theirs).norm() < 0.02 * way and way > 0.1


@pytest.mark.parametrize("shape", [(12, 40), (40, 12)])
def test_an_update_keeps_the_singular_vectors_and_makes_the_values_alike(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    inside = left.T @ orthogonal(matrix) @ right.T
    assert inside.diagonal().min() > 0.6 and inside.diagonal().max() < 1.3
    assert (inside - inside.diagonal().diag()).abs().max() < 1e-9


def test_a_matrix_without_a_gradient_direction_does_not_move():
    weight = torch.nn.Parameter(torch.ones(3, 3))
    optimizer = Muon([weight], lr=0.1, weight_decay=0.0)
    weight.grad = torch.zeros(3, 3)
    optimizer.step()
    assert torch.equal(weight.data, torch.ones(3, 3))
