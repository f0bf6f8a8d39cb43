"""Hard negative mining for deep metric learning at very large numbers of identities."""

from bonlib.bag import BagOfNegatives
from bonlib.datasets import list_datasets, load_dataset
from bonlib.evaluation import evaluate
from bonlib.hashers import list_hashers, make_hasher
from bonlib.hashing import OnlineAutoencoder
from bonlib.miners import list_miners, make_miner
from bonlib.table import BucketTable
from bonlib.training import Indexed, Step, fit

__all__ = [
    "BagOfNegatives",
    "BucketTable",
    "Indexed",
    "OnlineAutoencoder",
    "Step",
    "evaluate",
    "fit",
    "list_datasets",
    "list_hashers",
    "list_miners",
    "load_dataset",
    "make_hasher",
    "make_miner",
]
