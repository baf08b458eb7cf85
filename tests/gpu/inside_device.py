"""Run by `test_inside.py` with an emulated GPU: it behaves as CUDA's documentation says."""

import copy
import gc
import io

import numpy as np
import pytest
import torch

from tests.gpu.emulated_cuda import BLOCK, MACHINES, state

NAME = next(name for name, machine in MACHINES.items() if machine == state.machine)
TWO_DEVICES = "Expected all tensors to be on the same device"


def on(*shape: int, **how) -> torch.Tensor:
    return torch.ones(*shape, device="cuda", **how)


# --- Answers -------------------------------------------------------------------------------------


def test_torch_sees_the_machine():
    assert torch.cuda.is_available() and torch.cuda.device_count() == 1
    assert torch.cuda.get_device_name() == state.machine.gpu
    assert torch.cuda.get_device_capability() == state.machine.capability
    assert torch.cuda.get_device_properties(0).total_memory == state.machine.memory
    assert torch.accelerator.current_accelerator().type == "cuda"
    assert torch.cuda.is_bf16_supported()  # a T4 reports this as well, and computes it slowly
    assert torch.cuda.is_bf16_supported(including_emulation=False) is (NAME == "a100")


def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        torch.zeros(1, device="cuda:7")


# --- Placement -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(2, device="cuda"),
        lambda: torch.tensor([1.0, 2.0], device="cuda"),
        lambda: torch.as_tensor(np.ones(2), device="cuda"),
        lambda: torch.ones(2).to("cuda"),
        lambda: torch.ones(2).to(torch.device("cuda", 0), torch.float16),
        lambda: torch.ones(2).cuda(),
        lambda: torch.ones(2).to(on(1)),
        lambda: torch.ones(2).to(0),
        lambda: torch.zeros_like(on(2)),
        lambda: torch.zeros_like(torch.ones(2), device="cuda"),
        lambda: on(2).new_zeros(2),
        lambda: on(2).new_tensor([1, 2]),
        lambda: torch.nn.Linear(2, 2, device="cuda").weight,
        lambda: torch.nn.Linear(2, 2).to("cuda").weight,
        lambda: copy.deepcopy(on(2)),
        lambda: copy.deepcopy(torch.nn.Linear(2, 2).to("cuda")).weight,
        lambda: on(2) + 1,
        lambda: on(4).view(2, 2)[0],
        lambda: torch.tensor(on(2)),
    ],
)
def test_what_lies_on_the_gpu(make):
    made = make()
    assert made.is_cuda and not made.is_cpu and made.get_device() == 0
    assert made.device == torch.device("cuda", 0) and "cuda:0" in repr(made.detach())


def test_a_device_context_places_what_is_made_in_it():
    with torch.device("cuda"):
        made = torch.empty(2), torch.tensor([1]), torch.arange(3), torch.nn.Linear(2, 2).weight
    assert all(tensor.is_cuda for tensor in made)
    assert not torch.empty(2).is_cuda


@pytest.mark.parametrize(
    "make",
    [
        lambda: on(2).cpu(),
        lambda: on(2).to("cpu"),
        lambda: torch.zeros_like(on(2), device="cpu"),
        lambda: on(2).new_zeros(2, device="cpu"),
        lambda: torch.as_tensor(on(2), device="cpu"),
    ],
)
def test_what_lies_on_the_cpu(make):
    made = make()
    assert not made.is_cuda and made.device.type == "cpu"
    assert made.numpy().shape == (2,)


@pytest.mark.parametrize(
    "mix",
    [
        lambda gpu, cpu: gpu + cpu,
        lambda gpu, cpu: gpu @ cpu,
        lambda gpu, cpu: torch.cat([gpu, cpu]),
        lambda gpu, cpu: torch.equal(gpu, cpu),
        lambda gpu, cpu: torch.where(gpu > 0, gpu, cpu),
        lambda gpu, cpu: gpu.masked_fill(cpu > 0, 0.0),
        lambda gpu, cpu: gpu.gather(0, cpu.long()),
        lambda gpu, cpu: gpu.add_(cpu),
        lambda gpu, cpu: torch.nn.functional.linear(gpu, cpu),
        lambda gpu, cpu: torch.nn.functional.embedding(cpu.long(), gpu),
        lambda gpu, cpu: torch.stack([gpu, cpu]),
    ],
)
def test_an_operation_on_two_devices_raises(mix):
    with pytest.raises(RuntimeError, match=TWO_DEVICES):
        mix(on(2, 2), torch.ones(2, 2))


def test_a_cpu_tensor_is_not_indexed_from_the_gpu():
    with pytest.raises(RuntimeError, match="indices should be either on cpu"):
        torch.ones(3)[on(2).long()]


@pytest.mark.parametrize(
    "mix",
    [
        lambda gpu: gpu + torch.tensor(2.0),  # a number in a tensor
        lambda gpu: gpu * 2,
        lambda gpu: gpu[torch.tensor([0, 1])],  # indices may lie on the CPU
        lambda gpu: gpu[torch.tensor([True, False, True])],
        lambda gpu: gpu.copy_(torch.ones(3)),  # a copy may cross devices
        lambda gpu: gpu.index_put_((torch.tensor([0]),), torch.tensor(5.0)),
        lambda gpu: torch.where(gpu > 0, gpu, torch.tensor(0.0)),
    ],
)
def test_what_may_mix(mix):
    assert mix(on(3)).is_cuda


def test_numpy_wants_the_host():
    tensor = on(2)
    for take in (lambda: tensor.numpy(), lambda: np.asarray(tensor), lambda: np.mean([tensor[0]])):
        with pytest.raises(TypeError, match=r"Tensor\.cpu"):
            take()
    assert float(tensor[0]) == 1.0 and tensor.tolist() == [1.0, 1.0] and tensor[0].item() == 1.0


def test_gradients_go_back_to_where_a_tensor_came_from():
    leaf = torch.ones(3, requires_grad=True)
    (leaf.to("cuda") * 2).sum().backward()
    assert not leaf.grad.is_cuda and leaf.grad.tolist() == [2.0] * 3
    other = on(3).requires_grad_()
    (other.cpu() * 3).sum().backward()
    assert other.grad.is_cuda


def test_a_generator_belongs_to_its_device():
    seeded = torch.Generator("cuda").manual_seed(1)
    assert seeded.device.type == "cuda"
    assert torch.rand(2, device="cuda", generator=seeded).is_cuda
    with pytest.raises(RuntimeError, match="Expected a 'cuda' device type for generator"):
        torch.rand(2, device="cuda", generator=torch.Generator())
    with pytest.raises(RuntimeError, match="Expected a 'cpu' device type for generator"):
        torch.randperm(4, generator=seeded)


def test_saved_tensors_come_back_to_their_device():
    file = io.BytesIO()
    torch.save({"gpu": on(2), "cpu": torch.ones(2)}, file)
    file.seek(0)
    found = torch.load(file)
    assert found["gpu"].is_cuda and not found["cpu"].is_cuda
    file.seek(0)
    assert not torch.load(file, map_location="cpu")["gpu"].is_cuda


def test_attention_with_a_mask_of_its_own_and_dropout():
    query = torch.randn(1, 2, 4, 8, device="cuda", requires_grad=True)
    attend = torch.nn.functional.scaled_dot_product_attention
    attend(query, query, query, is_causal=True, dropout_p=0.1).sum().backward()
    assert query.grad.is_cuda


# --- Memory --------------------------------------------------------------------------------------


def test_bytes_are_counted_and_given_back():
    gc.collect()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    held = on(1000, dtype=torch.float32)
    part = held[10:]
    assert torch.cuda.memory_allocated() - before == -(-4000 // BLOCK) * BLOCK
    del held
    assert torch.cuda.memory_allocated() > before  # a view keeps its storage alive
    del part
    assert torch.cuda.memory_allocated() == before
    assert torch.cuda.max_memory_allocated() == before + 4096
    free, total = torch.cuda.mem_get_info()
    assert total - free == before


def test_activations_saved_for_backward_are_counted():
    layer = torch.nn.Linear(64, 64, device="cuda")
    rows = on(1000, 64)
    before = torch.cuda.memory_allocated()
    out = layer(rows).relu()
    assert torch.cuda.memory_allocated() - before >= 1000 * 64 * 4
    out.sum().backward()
    del out
    gc.collect()
    gradients = sum(-(-p.grad.nbytes // BLOCK) * BLOCK for p in layer.parameters())
    assert torch.cuda.memory_allocated() - before == gradients


def test_beyond_the_limit_it_runs_out_and_goes_on():
    memory = state.memory[0]
    memory.limit, limit = memory.now + 2**20, memory.limit
    try:
        with pytest.raises(torch.OutOfMemoryError, match=r"CUDA out of memory\. Tried to allocate"):
            on(2**20)
        with pytest.raises(torch.OutOfMemoryError):
            torch.ones(2**20).to("cuda")
        with pytest.raises(torch.OutOfMemoryError):
            on(2**10, 1) @ on(1, 2**10)
        assert on(100).is_cuda
    finally:
        memory.limit = limit


# --- Precision -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_computes_products_in_half_and_sums_in_full(dtype):
    layer, rows = torch.nn.Linear(8, 8, device="cuda"), torch.randn(4, 8, device="cuda")
    norm = torch.nn.LayerNorm(8, device="cuda")
    with torch.autocast("cuda", dtype):
        assert torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda") == dtype
        out = layer(rows)
        assert out.dtype == dtype
        assert out.softmax(-1).dtype == torch.float32  # as CUDA's list says
        assert norm(out).dtype == torch.float32 and out.sum().dtype == torch.float32
        with torch.autocast("cuda", enabled=False):
            assert layer(rows).dtype == torch.float32
    assert not torch.is_autocast_enabled("cuda")
    assert layer(rows).dtype == torch.float32


def test_fp16_overflows_and_the_scaler_skips_the_step():
    weight = torch.nn.Parameter(on(1))
    optimizer, scaler = torch.optim.SGD([weight], lr=1.0), torch.amp.GradScaler("cuda", 2.0**16)
    with torch.autocast("cuda", torch.float16):
        loss = (weight.half() * 60000 * 4).sum()  # greater than 65504, the largest fp16 number
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    before = scaler.get_scale()
    scaler.update()
    assert weight.item() == 1.0 and scaler.get_scale() < before


def test_products_of_half_precision_are_summed_in_fp32():
    row, column = torch.full((1, 4096), 0.1), torch.full((4096, 1), 0.1)
    found = row.cuda().half() @ column.cuda().half()
    wanted = (row.half().float() @ column.half().float()).half()
    assert found.dtype == torch.float16 and torch.equal(found.cpu(), wanted)


def test_bf16_gradients_cannot_be_unscaled():
    weight = torch.nn.Parameter(on(2, dtype=torch.bfloat16))
    optimizer, scaler = torch.optim.SGD([weight], lr=1.0), torch.amp.GradScaler("cuda")
    scaler.scale(weight.sum()).backward()
    with pytest.raises(NotImplementedError, match="not implemented for 'BFloat16'"):
        scaler.unscale_(optimizer)


def test_a_product_with_a_dtype_of_its_own():
    sums, part = torch.zeros(2, 2, device="cuda"), on(2, 2, dtype=torch.float16)
    found = torch.addmm(sums, part, part, out_dtype=torch.float32)
    assert found.dtype == torch.float32 and found.tolist() == [[2.0, 2.0], [2.0, 2.0]]


def test_trl_scores_only_answers_as_where_triton_is():
    from trl.trainer import utils

    assert utils._use_triton(torch.device("cuda")) and not utils._use_triton(torch.device("cpu"))
