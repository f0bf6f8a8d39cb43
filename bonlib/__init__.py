"""Hard negative mining for deep metric learning at very large numbers of identities."""

from bonlib.bag import BagOfNegatives
from bonlib.core.hashes import OnlineAutoencoder, list_hashers, make_hasher
from bonlib.core.table import BucketTable
from bonlib.datasets import list_datasets, load_dataset
from bonlib.miners import list_miners, make_miner
from bonlib.training.loop import Indexed, Step, fit
from bonlib.training.metrics import evaluate

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
