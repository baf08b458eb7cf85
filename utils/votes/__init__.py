"""Votes of people: the store, agreement beyond chance, voting in a notebook and in a terminal."""

from utils.door import door

__getattr__, __all__ = door(
    __name__,
    {
        "agreement": [
            "cohen_kappa",
            "fleiss_kappa",
            "kappa_interval",
            "mean_cohen_kappa",
            "position_bias",
            "preference",
            "reliable",
            "repeated_items",
        ],
        "files": ["offer_download"],
        "pairs": ["item_of", "queue", "read_pairs", "write_pairs"],
        "panel": ["LabelPanel", "side_by_side", "simulate"],
        "session": ["DEFAULT_RUBRIC"],
        "store": ["open_store", "read_votes", "tally", "to_dataset", "write_votes"],
        "terminal": ["label_in_terminal"],
    },
)
