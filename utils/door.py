"""The public names of a room (a subpackage of `utils`), each imported at its first use."""

import importlib
from collections.abc import Callable, Mapping, Sequence


def door(
    room: str, modules: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], object], list[str]]:
    """A package's `__getattr__` and `__all__`, from the public names of each of its modules.

    >>> find, names = door("utils.judge", {"metrics": ["accuracy"]})
    >>> names, find("accuracy")([1, 0], [1, 1])
    (['accuracy'], 0.5)
    """
    owner = {name: module for module, names in modules.items() for name in names}

    def find(name: str) -> object:
        if name not in owner:
            raise AttributeError(f"The room {room} has no {name!r}: see its __init__.py.")
        return getattr(importlib.import_module(f"{room}.{owner[name]}"), name)

    return find, sorted(owner)
