"""Values as JSON between the judge and the student's process: numbers, texts, tensors, votes.

Nothing that arrives can be code: what is not on the list becomes an `Unknown` with its type's name.
"""

import base64
import dataclasses
import json
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import numpy as np
import torch

KIND = "kind"
LONGEST = 8_000_000  # bytes of one message
MOST = 100_000  # elements of something that may have no end
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    )
}
SEQUENCES: dict[str, Callable] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}


class WireError(Exception):
    """A message that is not in the form of this module."""


class Unknown:
    """A value whose type the judge does not know."""


def encode(value: Any, functions: list[Callable] | None = None) -> Any:
    """A value in JSON; a function becomes its place in `functions`.

    >>> encode((1, "hai"))
    {'kind': 'tuple', 'items': [1, 'hai']}
    """
    if value is None or isinstance(value, bool | str):
        return value if type(value) in (type(None), bool, str) else str(value)
    if isinstance(value, int | float) and not isinstance(value, np.generic):
        return int(value) if isinstance(value, int) else float(value)
    if isinstance(value, torch.Tensor):
        dense = value.detach().to_dense() if value.layout != torch.strided else value.detach()
        if str(dense.dtype).removeprefix("torch.") not in DTYPES:
            return {KIND: "unknown", "name": str(dense.dtype)}
        flat = dense.cpu().contiguous().reshape(-1)
        return {
            KIND: "tensor",
            "dtype": str(dense.dtype).removeprefix("torch."),
            "shape": list(dense.shape),
            "data": base64.b64encode(flat.view(torch.uint8).numpy().tobytes()).decode(),
            "grad": value.requires_grad,
            "leaf": value.is_leaf,
        }
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            return encode(array.tolist(), functions)
        return {
            KIND: "array",
            "dtype": array.dtype.str,
            "shape": list(array.shape),
            "data": base64.b64encode(np.ascontiguousarray(array).tobytes()).decode(),
        }
    if isinstance(value, dict):
        pairs = [[encode(key, functions), encode(part, functions)] for key, part in value.items()]
        return {KIND: "dict", "items": pairs}
    if dataclasses.is_dataclass(value) and type(value).__name__ == "Vote":
        fields = {part.name: getattr(value, part.name) for part in dataclasses.fields(value)}
        return {KIND: "vote", "fields": {name: encode(part) for name, part in fields.items()}}
    if functions is not None and callable(value):
        functions.append(value)
        return {KIND: "function", "place": len(functions) - 1}
    if isinstance(value, Iterable) and not isinstance(value, type):
        kind = type(value).__name__
        items = [encode(part, functions) for part in islice(value, MOST)]
        return {KIND: kind if kind in SEQUENCES else "list", "items": items}
    return {KIND: "unknown", "name": type(value).__name__}


def decode(value: Any, remote: Callable[[int], Callable] | None = None) -> Any:
    """The value of a message; `remote` makes the function of a place.

    >>> decode({"kind": "tuple", "items": [1, "hai"]})
    (1, 'hai')
    """
    if not isinstance(value, dict):
        if isinstance(value, list):
            raise WireError("a list without its kind")
        return value
    try:
        return _decoded(value, remote)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, OverflowError) as error:
        raise WireError(f"a value that cannot be read: {error}") from None


def _decoded(value: dict, remote: Callable[[int], Callable] | None) -> Any:
    kind = value[KIND]
    if kind == "tensor":
        dtype = DTYPES[value["dtype"]]
        data = bytearray(base64.b64decode(value["data"]))
        flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        tensor = flat.reshape([int(size) for size in value["shape"]])
        if not value["grad"] or remote is None:  # only the student's side builds a graph
            return tensor
        tensor.requires_grad_()
        return tensor if value["leaf"] else tensor.view_as(tensor)
    if kind == "array":
        dtype = np.dtype(value["dtype"])
        if dtype.kind not in "biuf":
            raise WireError("an array of an unknown type")
        flat = np.frombuffer(bytearray(base64.b64decode(value["data"])), dtype=dtype)
        array = flat.reshape([int(size) for size in value["shape"]])
        return array if array.ndim else array[()]
    if kind in SEQUENCES:
        return SEQUENCES[kind](decode(part, remote) for part in value["items"])
    if kind == "dict":
        return {decode(key, remote): decode(part, remote) for key, part in value["items"]}
    if kind == "vote":
        from utils.votes.store import Vote

        return Vote(**{name: decode(part) for name, part in value["fields"].items()})
    if kind == "function" and remote is not None:
        return remote(int(value["place"]))
    name = str(value.get("name", "object"))[:40]
    return type(name if name.isidentifier() else "object", (Unknown,), {})()


def line(message: dict) -> bytes:
    """A message as one line."""
    return json.dumps(message).encode() + b"\n"


def message(text: bytes) -> dict:
    """The message of a line."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise WireError("a line that is not JSON") from None
    if not isinstance(found, dict):
        raise WireError("a line that is no message")
    return found
