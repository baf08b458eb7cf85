"""Plots, tables and the web demo."""

from utils.door import door

__getattr__, __all__ = door(
    __name__,
    {
        "demo": ["build", "launch"],
        "plots": [
            "use_style",
            "table",
            "pipeline",
            "rlhf",
            "class_balance",
            "histogram",
            "confusion",
            "calibration",
            "training_curves",
            "learning_curve",
            "Live",
            "frontier",
            "loss_and_pull",
            "clip_curves",
            "pair_training",
            "small_multiples",
            "preference_curves",
            "predicted_rates",
            "method_scatter",
        ],
    },
)
