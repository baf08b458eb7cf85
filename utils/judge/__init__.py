"""Evaluation: metrics with intervals, comparisons, the frontier of KL and reward."""

from utils.door import door

__getattr__, __all__ = door(
    __name__,
    {
        "attributes": ["attribute_rates", "combination_logps", "divergence", "predicted"],
        "comparison": ["chrf", "duels", "similarity_judge"],
        "frontier": [
            "Frontier",
            "Point",
            "add_best_of_n",
            "add_scaled",
            "judged_rows",
            "portrait",
            "recorded",
            "share_at",
            "train_group_method",
            "unseen",
        ],
        "metrics": [
            "accuracy",
            "best_objective",
            "bootstrap",
            "distinct",
            "f1_per_class",
            "gain",
            "independent_judge",
            "macro_f1",
            "minimal_kl",
            "perplexity",
            "reliability",
            "tied_best_of_n_kl",
        ],
    },
)
