"""Evaluation: metrics with intervals, comparisons, the frontier of KL and reward."""

from utils.door import door

__getattr__, __all__ = door(
    __name__,
    {
        "comparison": ["chrf", "duels", "similarity_judge"],
        "frontier": ["Frontier", "portrait", "train_group_method"],
        "metrics": [
            "accuracy",
            "best_of_n_kl",
            "bootstrap",
            "distinct",
            "f1_per_class",
            "independent_judge",
            "macro_f1",
            "minimal_kl",
            "perplexity",
            "reliability",
        ],
    },
)
