"""The checks of the exercises, one module per notebook; the equality of two losses."""

from utils.door import door

__getattr__, __all__ = door(
    __name__,
    {
        "checks": ["attempt", "check"],
        "equality": ["EQUALITIES", "distances", "same", "trl_grpo_loss", "trl_orpo_loss"],
    },
)
