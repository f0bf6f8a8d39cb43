"""What methods are called in tables and figures."""

MINER_NAMES = {
    "bag": "BoN",
    "two-stage-bag": "two-stage BoN",
    "random": "random",
    "class-based": "SCHEM",
    "smart": "smart mining",
    "subspaces": "100K identities",
    "graph": "graph sampling",
    "exact": "exact oracle",
    "refreshed-bag": "BoN, fresh table",
}


def method_name(miner: str, form: str, loss: str = "") -> str:
    """What a method is called in figures and tables.

    Example:
        >>> method_name("bag", "set", "batch-hard"), method_name("random", "triplet", "triplet")
        ('BoN sets + batch-hard', 'random triplets')
    """
    base = f"{MINER_NAMES.get(miner, miner)} {form}s"
    return base if loss in ("", form) or (form, loss) == ("pair", "contrastive") else f"{base} + {loss}"
