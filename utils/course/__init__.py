"""A notebook's session: profiles, artifacts, the Hub, Colab, running notebooks, errors."""

from utils.door import door

__getattr__, __all__ = door(
    __name__,
    {
        "paths": ["ROOT"],
        "session": ["start"],
    },
)
