"""The checks of the exercises, one module per notebook."""

from utils.door import door

__getattr__, __all__ = door(
    __name__,
    {
        "checks": ["attempt", "check"],
    },
)
