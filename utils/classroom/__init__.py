"""A page on one laptop on which a class votes, and the training on the accepted votes."""

from utils.door import door

__getattr__, __all__ = door(
    __name__,
    {
        "app": ["Desk", "build"],
        "comparing": ["Comparisons", "saved_models"],
        "figures": ["figures"],
        "room": ["Classroom", "addresses", "open_room"],
        "training": ["Job", "train"],
    },
)
