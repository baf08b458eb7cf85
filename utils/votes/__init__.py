"""Votes of people: the store, agreement beyond chance, the panel for voting."""

from utils.door import door

__getattr__, __all__ = door(
    __name__,
    {
        "agreement": [
            "cohen_kappa",
            "kappa_interval",
            "position_bias",
            "preference",
            "reliable",
            "repeated_items",
        ],
        "panel": ["DEFAULT_RUBRIC", "LabelPanel", "queue", "side_by_side", "simulate"],
        "store": ["open_store", "read_votes", "tally", "to_dataset", "write_votes"],
    },
)
