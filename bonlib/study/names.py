"""What methods are called in tables and figures."""

MINER_NAMES = {
    "bag": "first-stage",
    "two-stage-bag": "two-stage",
    "random": "random",
    "class-based": "SCHEM",
    "smart": "smart mining",
    "subspaces": "100K identities",
    "graph": "graph sampling",
    "exact": "exact oracle",
    "refreshed-bag": "fresh-table",
}


def metric_name(metric: str) -> str:
    """What a metric is called in figures, whatever it was measured on.

    Example:
        >>> metric_name("validation.recall@1"), metric_name("map@r")
        ('R@1', 'map@r')
    """
    return metric.rpartition(".")[2].replace("recall@", "R@")


def method_name(miner: str, form: str, loss: str = "") -> str:
    """What a method is called in figures and tables.

    Example:
        >>> method_name("bag", "set", "batch-hard"), method_name("random", "triplet", "triplet")
        ('first-stage sets + batch-hard', 'random triplets')
    """
    base = f"{MINER_NAMES.get(miner, miner)} {form}s"
    return base if loss in ("", form) or (form, loss) == ("pair", "contrastive") else f"{base} + {loss}"
