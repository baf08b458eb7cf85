"""An emulated CUDA device, so that the GPU code can be tested on a CPU.

`switch_on(MACHINES["t4"])` makes torch answer as it does on a machine with that GPU:

- Placement. Every tensor stays in the CPU's memory. A storage that `.to("cuda")`, `.cuda()` or a
  factory with `device="cuda"` makes has a tag, and the result of an operation on tagged tensors has
  the tag as well. An operation on tensors of two devices raises CUDA's own error.
- Memory. The bytes of the living tagged storages are counted; beyond the machine's memory
  `torch.OutOfMemoryError` is raised.
- Precision. `autocast("cuda")` and the gradient scaler really compute in fp16 or bf16, products
  are summed in fp32 as on a GPU, and operations that CUDA's autocast runs in fp32 run in fp32.
- Answers. `torch.cuda`, `torch.accelerator` and the libraries that query them report this machine.

Not emulated: the speed and the kernels of a GPU, its random numbers, CUDA graphs, `torch.compile`
(which returns the function unchanged), and the memory of CUDA itself, of the allocator's fragments
and of the libraries' workspaces.
"""

import functools
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes


@dataclass(frozen=True)
class Machine:
    """A machine with GPUs of one kind."""

    gpu: str
    capability: tuple[int, int]
    memory: int  # bytes of one GPU, as torch reports them
    gpus: int = 1


MACHINES = {
    "t4": Machine("Tesla T4", (7, 5), 15_637_086_208),
    "a100": Machine("NVIDIA A100-SXM4-40GB", (8, 0), 42_297_786_368),
    "two-t4": Machine("Tesla T4", (7, 5), 15_637_086_208, gpus=2),  # Kaggle
    "p100": Machine("Tesla P100-PCIE-16GB", (6, 0), 17_059_545_088),  # Kaggle
}

# --- Tags and memory -----------------------------------------------------------------------------

BLOCK = 512  # bytes: the allocator rounds up to a multiple


@dataclass
class Memory:
    """The bytes of one GPU's living storages."""

    limit: int
    now: int = 0
    peak: int = 0

    def take(self, size: int, index: int) -> None:
        """Count a new storage, or raise CUDA's error if it does not fit."""
        if self.now + size > self.limit:
            free = (self.limit - self.now) / 2**20
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {size / 2**20:.2f} MiB. GPU {index} has a "
                f"total capacity of {self.limit / 2**30:.2f} GiB of which {free:.2f} MiB is free. "
                f"Of the allocated memory {self.now / 2**30:.2f} GiB is allocated by PyTorch "
                "(emulated)."
            )
        self.now += size
        self.peak = max(self.peak, self.now)


@dataclass
class State:
    """The state of the emulation in this process."""

    machine: Machine
    memory: list[Memory]
    current: int = 0  # the device that "cuda" means
    visible: int | None = None  # number of GPUs; fixed when the first one is used
    tags: dict[int, tuple[int, int]] = field(default_factory=dict)  # storage -> bytes, GPU
    generators: set[int] = field(default_factory=set)  # those made for a GPU
    around: int | None = None  # the GPU that a composite operation makes its masks on


state: State | None = None


def _key(tensor: Tensor) -> int | None:
    """What names a tensor's storage; None where there is none, as for sparse tensors."""
    if tensor.layout is not torch.strided:
        return None
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):
        return None


def gpu_of(tensor: Tensor) -> int | None:
    """The GPU that a tensor lies on, or None for the CPU."""
    tag = state.tags.get(_key(tensor))
    return tag and tag[1]


def _forget(key: int, tags: dict) -> None:
    size, index = tags.pop(key, (0, 0))
    state.memory[index].now -= size


def _tag(tensor: Tensor, index: int) -> Tensor:
    """The tensor, its storage counted as one of this GPU's."""
    key = _key(tensor)
    if key is None or key in state.tags or tensor.is_meta:
        return tensor
    storage = tensor.untyped_storage()
    size = -(-storage.nbytes() // BLOCK) * BLOCK
    state.memory[index].take(size, index)
    state.tags[key] = size, index
    weakref.finalize(storage, _forget, key, state.tags).atexit = False
    return tensor


def _copy(tensor: Tensor, dtype: torch.dtype, index: int | None, **how: object) -> Tensor:
    """A new tensor of the same values, on a GPU or (None) on the CPU."""
    with _disable_current_modes(), torch.no_grad():
        if index is not None:  # before the bytes are allocated, as in CUDA
            free = state.memory[index].limit - state.memory[index].now
            if tensor.numel() * dtype.itemsize > free:
                state.memory[index].take(tensor.numel() * dtype.itemsize, index)
        made = _to(tensor.detach(), dtype=dtype, copy=True, **how)
    return made if index is None else _tag(made, index)


# --- Operations ----------------------------------------------------------------------------------

COPIES = {"copy_", "_to_copy", "set_", "_foreach_copy_"}  # may read from another device
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
INDEXING |= {"_unsafe_index_put"}
PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "addbmm", "addmv", "mv", "convolution", "gemm_4bit"}
PRODUCTS |= {"linear", "matmul", "scaled_dot_product_attention"}  # in one piece in inference mode
ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"
PRODUCTS |= {ATTENTION, f"{ATTENTION}_backward"}
MIXED = {"gemm_4bit", f"{ATTENTION}_backward"}  # scales and sums of exponentials are in fp32
HALVES = (torch.float16, torch.bfloat16)
UNSCALE = "_amp_foreach_non_finite_check_and_unscale_"


def _tensors(values: Iterable) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _refuse_two_devices(name: str, given: list[Tensor], gpus: list[int | None]) -> None:
    """Raise as CUDA does when an operation is given tensors of two devices."""
    if name in INDEXING and gpus[0] is not None:  # its indices may lie on the CPU
        kept = [
            at
            for at, tensor in enumerate(given)
            if at == 0 or tensor.dtype not in (torch.long, torch.int, torch.bool, torch.uint8)
        ]
        given, gpus = [given[at] for at in kept], [gpus[at] for at in kept]
    elif name in INDEXING and gpus[0] is None:
        raise RuntimeError(
            "indices should be either on cpu or on the same device as the indexed tensor (cpu)"
        )
    # a number in a CPU tensor of no dimension may meet any GPU
    found = {index for tensor, index in zip(given, gpus, strict=True) if tensor.dim() or index}
    found |= {index for index in gpus if index is not None}
    if len(found) > 1:
        names = sorted("cpu" if index is None else f"cuda:{index}" for index in found)
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"{names[-1]} and {names[0]}! ({name})"
        )


def _is_half(func: Callable, name: str, given: list[Tensor]) -> bool:
    """Whether a product is in half precision; of mixed factors the operation itself complains."""
    kinds = {tensor.dtype for tensor in given if tensor.is_floating_point()}
    if kinds.isdisjoint(HALVES):
        return False
    # an overload with a dtype, which only CUDA has, adds products to a sum in fp32
    return len(kinds) == 1 or name in MIXED or func._overloadname.startswith("dtype")


def _in_float32(func: Callable, name: str, args: tuple, kwargs: dict) -> object:
    """A product in half precision: summed in fp32, then rounded or returned in `dtype`."""

    def widened(value: object) -> object:
        return value.float() if isinstance(value, Tensor) and value.dtype in HALVES else value

    target = kwargs.pop("out", None)
    asked = [value for value in args if isinstance(value, torch.dtype)]  # only CUDA has these
    rounded = asked[0] if asked else next(_tensors(args)).dtype
    plain = [widened(value) for value in args if not isinstance(value, torch.dtype)]
    kwargs = {key: widened(value) for key, value in kwargs.items()}
    operation = func if func.namespace == "bitsandbytes" else getattr(torch.ops.aten, name).default
    made = operation(*plain, **kwargs)
    if name == ATTENTION:  # the second result is in fp32 on a GPU too
        return made[0].to(rounded), made[1]
    if isinstance(made, tuple):
        return tuple(one.to(rounded) for one in made)
    made = made.to(rounded)
    return made if target is None else target.copy_(made)


def _check_generator(generator: torch.Generator | None, index: int | None) -> None:
    if generator is None:
        return
    wanted = "cpu" if index is None else "cuda"
    found = "cuda" if generator._cdata in state.generators else "cpu"
    if wanted != found:
        raise RuntimeError(f"Expected a '{wanted}' device type for generator but found '{found}'")


class Placement(TorchDispatchMode):
    """Checks the devices of the tensors of every operation, and tags its result."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and the guard costs microseconds per operation

    def __torch_dispatch__(
        self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        kwargs = kwargs or {}
        name = func._schema.name.partition("::")[2]
        given = [*_tensors(args), *_tensors(kwargs.values())]
        gpus = [gpu_of(tensor) for tensor in given]
        index = next((gpu for gpu in gpus if gpu is not None), None)
        if not given:
            index = state.around
        if (index is not None and None in gpus and name not in COPIES) or (
            len({gpu for gpu in gpus if gpu is not None}) > 1 and name not in COPIES
        ):
            _refuse_two_devices(name, given, gpus)
        asked = kwargs.get("device")
        if asked is not None and asked.type == "cuda":
            index, kwargs = _index(asked), {**kwargs, "device": torch.device("cpu")}
            if kwargs.get("pin_memory"):
                kwargs["pin_memory"] = False
        if "generator" in kwargs:
            _check_generator(kwargs["generator"], index)
        if name == UNSCALE and any(tensor.dtype is torch.bfloat16 for tensor in given):
            raise NotImplementedError(
                "\"_amp_foreach_non_finite_check_and_unscale_cuda\" not implemented for 'BFloat16'"
            )
        if index is not None and name in PRODUCTS and _is_half(func, name, given):
            made = _in_float32(func, name, args, dict(kwargs))
        else:
            made = func(*args, **kwargs)
        if index is not None and name != "copy_":
            for tensor in _tensors([made]):
                _tag(tensor, index)
        return made


# --- Tensors -------------------------------------------------------------------------------------

_base = torch._C.TensorBase
_to, _numpy, _array = torch.Tensor.to, torch.Tensor.numpy, torch.Tensor.__array__
HOST = (
    "can't convert cuda:{0} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to "
    "host memory first."
)


def _index(device: torch.device) -> int:
    """The GPU that a device names."""
    index = state.current if device.index is None else device.index
    if index >= device_count():
        raise torch.AcceleratorError("CUDA error: invalid device ordinal")
    return index


def _parsed(device: object) -> torch.device | None:
    """A device given as text, number or device."""
    if device is None or isinstance(device, torch.device):
        return device
    return torch.device("cuda", device) if type(device) is int else torch.device(device)


class _Move(torch.autograd.Function):
    """A copy on another device, whose gradient goes back to where the tensor came from."""

    @staticmethod
    def forward(
        ctx: object, tensor: Tensor, dtype: torch.dtype, index: int | None, how: dict
    ) -> Tensor:
        ctx.back = tensor.dtype, gpu_of(tensor)
        return _copy(tensor, dtype, index, **how)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> tuple:
        return _copy(gradient, *ctx.back), None, None, None


def _moved(tensor: Tensor, device: torch.device | None, **how: object) -> Tensor:
    """The result of `tensor.to`."""
    how.pop("non_blocking", None)
    if tensor.is_meta or (device is not None and device.type == "meta"):
        target = {} if device is None else {"device": "meta" if device.type == "meta" else "cpu"}
        return _to(tensor, **target, **how)
    old = gpu_of(tensor)
    new = old if device is None else _index(device) if device.type == "cuda" else None
    if old == new:  # may be the same tensor
        made = _to(tensor, **how)
        return made if new is None else _tag(made, new)
    dtype = how.pop("dtype", None) or tensor.dtype
    how.pop("copy", None)
    return _Move.apply(tensor, dtype, new, how)


@functools.wraps(_to)
def _tensor_to(tensor: Tensor, *args: object, **how: object) -> Tensor:
    rest, device = list(args), how.pop("device", None)
    other = how.pop("other", None)
    if rest and isinstance(rest[0], Tensor):
        other = rest.pop(0)
    elif rest and not isinstance(rest[0], (torch.dtype, bool)):
        device = rest.pop(0)
    if other is not None:
        device, how["dtype"] = other.device, other.dtype
    elif rest and (rest[0] is None or isinstance(rest[0], torch.dtype)):
        how["dtype"] = rest.pop(0)
    how |= dict(zip(("non_blocking", "copy"), rest, strict=False))
    return _moved(tensor, _parsed(device), **{k: v for k, v in how.items() if v is not None})


def _to_host(function: Callable) -> Callable:
    @functools.wraps(function)
    def checked(tensor: Tensor, *args: object, **how: object) -> object:
        if (index := gpu_of(tensor)) is not None and not how.get("force"):
            raise TypeError(HOST.format(index))
        return function(tensor, *args, **how)

    return checked


def _placed(make: Callable) -> Callable:
    """A factory with a tensor as its model: `zeros_like`, `new_zeros` and similar functions."""

    @functools.wraps(make)
    def made(tensor: Tensor, *args: object, **how: object) -> Tensor:
        device = _parsed(how.pop("device", None))
        if device is None:
            result, index = make(tensor, *args, **how), gpu_of(tensor)
        elif device.type in ("cpu", "cuda"):
            result = make(tensor, *args, **how, device="cpu")
            index = _index(device) if device.type == "cuda" else None
        else:
            return make(tensor, *args, **how, device=device)
        if index is not None:
            return _tag(result, index)
        if not result.is_meta:
            _forget(_key(result), state.tags)
        return result

    return made


def _factory(make: Callable) -> Callable:
    """`torch.empty` and similar functions; `Placement` misses them inside a library's operation."""

    @functools.wraps(make)
    def made(*args: object, **how: object) -> Tensor:
        device = _parsed(how.get("device"))
        how.pop("pin_memory", None)
        if device is None or device.type != "cuda":
            return make(*args, **how)
        _check_generator(how.get("generator"), _index(device))
        plain = {name: value for name, value in how.items() if name not in ("generator", "device")}
        numbers = {"generator": how["generator"]} if how.get("generator") is not None else {}
        with _disable_current_modes():
            result = make(*args, **plain, **numbers, device="cpu")
        return _tag(result, _index(device))

    return made


def _default_device() -> torch.device | None:
    """The device set by `with torch.device(…)` or `torch.set_default_device`."""
    modes = reversed(torch.overrides._get_current_function_mode_stack())
    kind = torch.utils._device.DeviceContext
    return next((mode.device for mode in modes if isinstance(mode, kind)), None)


def _from_data(make: Callable, *, copies: bool) -> Callable:
    """`torch.tensor` and `torch.as_tensor`: their data may be on a GPU, or may go there."""

    @functools.wraps(make)
    def made(data: object, *args: object, **how: object) -> Tensor:
        if isinstance(data, Tensor) and gpu_of(data) is not None:
            changes = {name: how[name] for name in ("dtype", "device") if how.get(name) is not None}
            result = data.detach().to(**changes, copy=copies) if changes or copies else data
            return result.requires_grad_() if how.get("requires_grad") else result
        device = _parsed(how.get("device")) or _default_device()
        if device is None or device.type != "cuda":
            return make(data, *args, **how)
        copied = make(data, *args, **{**how, "device": "cpu"})
        return _tag(copied.clone() if copied is data else copied, _index(device))

    return made


def _composite(function: Callable) -> Callable:
    """A composite operation, whose C++ creates tensors on the first argument's apparent device."""

    @functools.wraps(function)
    def around(first: Tensor, *args: object, **how: object) -> Tensor:
        before, state.around = state.around, gpu_of(first)
        try:
            return function(first, *args, **how)
        finally:
            state.around = before

    return around


FACTORIES = ("empty", "empty_strided", "zeros", "ones", "full", "rand", "randn", "randint")
FACTORIES += ("randperm", "arange", "linspace", "logspace", "eye", "tril_indices", "triu_indices")
FACTORIES += ("scalar_tensor",)
LIKE = ("empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like")
LIKE += ("randint_like",)
NEW = ("new_empty", "new_zeros", "new_ones", "new_full", "new_tensor", "new_empty_strided")


def _patch_tensors() -> None:
    kind = torch.Tensor

    def device(tensor: Tensor) -> torch.device:
        index = gpu_of(tensor)
        return _base.device.__get__(tensor) if index is None else torch.device("cuda", index)

    kind.device = property(device)
    kind.is_cuda = property(lambda tensor: gpu_of(tensor) is not None)
    kind.is_cpu = property(lambda t: gpu_of(t) is None and _base.is_cpu.__get__(t))
    kind.get_device = lambda tensor: -1 if gpu_of(tensor) is None else gpu_of(tensor)
    kind.to = _tensor_to
    kind.cuda = lambda t, device=None, *_, **__: _moved(t, _parsed(device) or torch.device("cuda"))
    kind.cpu = lambda tensor, *_, **__: _moved(tensor, torch.device("cpu"))
    kind.pin_memory = lambda tensor, *_: tensor
    kind.is_pinned = lambda tensor, *_: False
    kind.numpy, kind.__array__ = _to_host(_numpy), _to_host(_array)
    for name in NEW:
        setattr(kind, name, _placed(getattr(kind, name)))
    for name in LIKE:
        setattr(torch, name, _placed(getattr(torch, name)))
    for name in FACTORIES:
        setattr(torch, name, _factory(getattr(torch, name)))
    torch.tensor = _from_data(torch.tensor, copies=True)
    torch.as_tensor = _from_data(torch.as_tensor, copies=False)
    torch.asarray = _from_data(torch.asarray, copies=False)
    functional = torch.nn.functional
    functional.scaled_dot_product_attention = _composite(functional.scaled_dot_product_attention)


# --- Files ---------------------------------------------------------------------------------------


def _patch_files() -> None:
    """`torch.save` writes the device of a tensor, and `torch.load` restores it."""

    def where(storage: torch.UntypedStorage) -> str | None:
        tag = state.tags.get(storage._cdata)
        return None if tag is None else f"cuda:{tag[1]}"

    def back(storage: torch.UntypedStorage, location: str) -> torch.UntypedStorage | None:
        if not location.startswith("cuda"):
            return None
        held = torch.empty(0, dtype=torch.uint8).set_(storage)
        _tag(held, _index(torch.device(location)))
        return storage

    torch.serialization.register_package(5, where, back)


# --- Precision -----------------------------------------------------------------------------------

# operations that CUDA's autocast runs in fp32, but not the CPU's
FLOAT32 = {
    torch.nn.functional: "softmax log_softmax layer_norm cross_entropy nll_loss mse_loss kl_div "
    "softplus group_norm normalize cosine_similarity l1_loss smooth_l1_loss",
    torch: "softmax log_softmax exp expm1 log log1p log2 log10 pow cumsum cumprod prod sum norm "
    "rsqrt reciprocal layer_norm dist",
    torch.Tensor: "softmax log_softmax exp expm1 log log1p log2 log10 pow cumsum cumprod prod sum "
    "norm rsqrt reciprocal __pow__ __rpow__",
}


def _kept_in_float32(function: Callable) -> Callable:
    @functools.wraps(function)
    def wide(*args: object, **how: object) -> object:
        if not torch.is_autocast_enabled("cpu"):
            return function(*args, **how)
        halves = [isinstance(value, Tensor) and value.dtype in HALVES for value in args]
        if not any(halves):
            return function(*args, **how)
        args = [a.float() if half else a for a, half in zip(args, halves, strict=True)]
        how = {
            k: v.float() if isinstance(v, Tensor) and v.dtype in HALVES else v
            for k, v in how.items()
        }
        return function(*args, **how)

    return wide


def _patch_precision() -> None:
    for owner, names in FLOAT32.items():
        for name in names.split():
            setattr(owner, name, _kept_in_float32(getattr(owner, name)))

    def on_cpu(function: Callable) -> Callable:
        @functools.wraps(function)
        def asked(device_type: str | None = None, *args: object, **how: object) -> object:
            given = () if device_type is None else ("cpu",)  # None means CUDA
            return function(*(given or ("cpu",)), *args, **how)

        return asked

    for name in ("is_autocast_enabled", "get_autocast_dtype", "set_autocast_enabled"):
        setattr(torch, name, on_cpu(getattr(torch, name)))
    torch.set_autocast_dtype = on_cpu(torch.set_autocast_dtype)
    torch.is_autocast_available = lambda device_type: device_type in ("cpu", "cuda")
    torch.amp.is_autocast_available = torch.is_autocast_available
    autocast, scaler = torch.autocast.__init__, torch.amp.GradScaler.__init__

    @functools.wraps(autocast)
    def autocast_init(
        self: torch.autocast,
        device_type: str,
        dtype: torch.dtype | None = None,
        *rest: object,
        **how: object,
    ) -> None:
        if torch.device(device_type).type == "cuda":
            device_type, dtype = "cpu", dtype or torch.float16
        autocast(self, device_type, dtype, *rest, **how)

    @functools.wraps(scaler)
    def scaler_init(self: object, device: str = "cuda", *args: object, **how: object) -> None:
        scaler(self, "cpu", *args, **how)

    start = torch.amp.GradScaler._lazy_init_scale_growth_tracker

    def start_on_gpu(self: torch.amp.GradScaler, device: torch.device) -> None:
        start(self, device)
        for tensor in (self._scale, self._growth_tracker):
            _tag(tensor, device.index or 0)

    torch.autocast.__init__ = autocast_init
    torch.amp.GradScaler.__init__ = scaler_init
    torch.amp.GradScaler._lazy_init_scale_growth_tracker = start_on_gpu


# --- What torch.cuda answers ---------------------------------------------------------------------


class Generator(torch.Generator):
    """A generator for either device; its numbers are those of the CPU."""

    def __new__(cls, device: object = "cpu") -> "Generator":
        made = super().__new__(cls)
        if _parsed(device).type == "cuda":
            state.generators.add(made._cdata)
            weakref.finalize(made, state.generators.discard, made._cdata).atexit = False
        return made

    @property
    def device(self) -> torch.device:
        """The device for which it was created."""
        return torch.device("cuda", 0) if self._cdata in state.generators else torch.device("cpu")


class _Quiet:
    """A stream, an event or a device context that does nothing: there is nothing to wait for."""

    def __init__(self, *_: object, **__: object) -> None:
        self.device, self.cuda_stream, self.device_index = torch.device("cuda", 0), 0, 0

    def __enter__(self) -> "_Quiet":
        return self

    def __exit__(self, *_: object) -> bool:
        return False

    def synchronize(self) -> None: ...

    def wait_stream(self, *_: object) -> None: ...

    def wait_event(self, *_: object) -> None: ...

    def wait(self, *_: object) -> None: ...

    def record(self, *_: object) -> None: ...

    def record_event(self, *_: object) -> "_Quiet":
        return _Quiet()

    def query(self) -> bool:
        return True

    def is_capturing(self) -> bool:
        return False

    def elapsed_time(self, _: object) -> float:
        return 1.0


def device_count() -> int:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves, as read when the first one is used."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    seen = state.machine.gpus
    if listed is not None:
        seen = len([part for part in listed.split(",") if part.strip().isdigit()])
        seen = min(seen, state.machine.gpus)
    if state.visible is None and state.tags:
        state.visible = seen
    return seen if state.visible is None else state.visible


@dataclass(frozen=True)
class Properties:
    """The result of `get_device_properties`."""

    name: str
    major: int
    minor: int
    total_memory: int
    multi_processor_count: int = 40
    warp_size: int = 32
    is_integrated: bool = False
    gcnArchName: str = ""
    uuid: str = "emulated"


def _memory(index: object = None) -> Memory:
    device = torch.device("cuda") if index is None else _parsed(index)
    return state.memory[_index(device)]


def _answers() -> dict[str, object]:
    machine = state.machine
    nothing = lambda *_, **__: None  # noqa: E731

    def select(device: object) -> None:
        state.current = _index(_parsed(device))

    def forget_peak(device: object = None) -> None:
        memory = _memory(device)
        memory.peak = memory.now

    shared = {
        "is_available": lambda: device_count() > 0,
        "device_count": device_count,
        "synchronize": nothing,
        "empty_cache": nothing,
        "memory_allocated": lambda device=None: _memory(device).now,
        "max_memory_allocated": lambda device=None: _memory(device).peak,
        "memory_reserved": lambda device=None: _memory(device).now,
        "max_memory_reserved": lambda device=None: _memory(device).peak,
        "reset_peak_memory_stats": forget_peak,
        "current_stream": lambda *_: _Quiet(),
    }
    cuda = shared | {
        "is_initialized": lambda: True,
        "_lazy_init": nothing,
        "init": nothing,
        "current_device": lambda: state.current,
        "set_device": select,
        "get_device_capability": lambda device=None: machine.capability,
        "get_device_name": lambda device=None: machine.gpu,
        "get_device_properties": lambda device=None: Properties(
            machine.gpu, *machine.capability, machine.memory
        ),
        "get_arch_list": lambda: ["sm_75", "sm_80", "sm_90"],
        "is_bf16_supported": lambda including_emulation=True: (
            including_emulation or machine.capability[0] >= 8
        ),
        "mem_get_info": lambda device=None: (
            _memory(device).limit - _memory(device).now,
            _memory(device).limit,
        ),
        "ipc_collect": nothing,
        "reset_max_memory_allocated": forget_peak,
        "manual_seed": nothing,  # torch.manual_seed seeds the CPU, whose numbers are used
        "manual_seed_all": nothing,
        "seed": nothing,
        "seed_all": nothing,
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "set_rng_state": nothing,
        "get_rng_state_all": lambda: [torch.get_rng_state()],
        "set_rng_state_all": nothing,
        "Stream": _Quiet,
        "Event": _Quiet,
        "default_stream": lambda *_: _Quiet(),
        "stream": lambda *_: _Quiet(),
        "is_current_stream_capturing": lambda: False,
        "device": _Quiet,
        "device_of": _Quiet,
    }
    accelerator = shared | {
        "current_accelerator": lambda *_, **__: torch.device("cuda"),
        "current_device_index": lambda: state.current,
        "current_device_idx": lambda: state.current,
        "set_device_index": select,
        "set_device_idx": select,
        "device_index": _Quiet,
    }
    numbers = ("get_rng_state", "set_rng_state", "get_rng_state_all", "set_rng_state_all")
    return {
        "cuda": cuda,
        "accelerator": accelerator,
        "cuda.random": {name: cuda[name] for name in numbers},
    }


def _patch_answers() -> None:
    for path, answers in _answers().items():
        module = functools.reduce(getattr, path.split("."), torch)
        for name, answer in answers.items():
            setattr(module, name, answer)
    torch._C._cuda_getDevice = lambda: state.current
    torch.Generator = Generator

    def uncompiled(function: Callable | None = None, **_: object) -> Callable:
        return function if function is not None else lambda inner: inner

    torch.compile = uncompiled


def _patch_libraries() -> None:
    from transformers import modeling_utils
    from transformers.quantizers import quantizer_bnb_4bit

    def named(device_map: object) -> object:
        # torch's C++ takes a number for the current accelerator, and it has none
        if not isinstance(device_map, dict):
            return device_map
        return {k: f"cuda:{v}" if type(v) is int else v for k, v in device_map.items()}

    kind = quantizer_bnb_4bit.Bnb4BitHfQuantizer
    update = kind.update_device_map
    kind.update_device_map = lambda self, device_map: named(update(self, device_map))
    for name in ("check_and_set_device_map", "_get_device_map"):
        function = getattr(modeling_utils, name)
        setattr(modeling_utils, name, lambda *a, _f=function, **k: named(_f(*a, **k)))


class _Launcher:
    """A Triton kernel's `kernel[grid](…)` that runs TRL's own torch form of the kernel."""

    def __init__(self, function: Callable) -> None:
        self.function = function

    def __getitem__(self, grid: object) -> Callable:
        return self.function


def with_triton(module: object) -> None:
    """TRL's fused head takes the branch for Triton, which scores only the answers."""
    module._use_triton = lambda device: device.type == "cuda"
    module._forward_kernel = _Launcher(module._forward_tile)
    module._backward_kernel = _Launcher(module._backward_tile)
    module.triton = SimpleNamespace(cdiv=lambda a, b: -(-a // b))


def switch_on(machine: Machine, memory: int | None = None) -> None:
    """Make torch report this machine's GPUs for the rest of this process.

    `memory` in bytes replaces that of the machine, so that small tensors reach the limit.
    """
    global state
    if state is not None:
        raise RuntimeError("The emulated GPU is switched on already.")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    import bitsandbytes  # noqa: F401 - it chooses its kernels while there is no GPU

    limit = memory or machine.memory
    state = State(machine, [Memory(limit) for _ in range(machine.gpus)])
    torch._C._ensureCUDADeviceGuardSet()
    torch._C._set_only_lift_cpu_tensors(True)  # to dispatch torch.tensor(…, device="cuda")
    torch.utils._device._device_constructors()  # `with torch.device(…)` knows the factories of now
    _patch_answers()
    _patch_libraries()
    _patch_files()
    _patch_precision()
    _patch_tensors()
    Placement().__enter__()
    run = threading.Thread.run

    def placed(thread: threading.Thread) -> None:
        with Placement():  # a dispatch mode is active only in the thread that entered it
            run(thread)

    threading.Thread.run = placed
