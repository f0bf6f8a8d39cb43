"""Data sets that grow: the state of a bag over the first samples, as one over all of them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from bonlib.core.checks import as_array
from bonlib.core.kernels import grouped, new_streams, plain_order
from bonlib.core.layout import label_array, label_fingerprint, numbered
from bonlib.core.means import RunningMeans

if TYPE_CHECKING:
    from bonlib.core.hashed import HashedMiner

_OF_THE_SET = ("num_samples", "num_classes", "labels", "steps")  # parts of a bag's config that grow with it


def joined(bag: "HashedMiner", labels: ArrayLike | Tensor) -> NDArray[np.int64]:
    """The labels of a bag's samples, followed by those of more.

    Raises:
        ValueError: if these are no integers, or too large.
    """
    added = label_array(labels)
    return np.concatenate([bag.classes[bag.class_of].astype(np.int64), added.astype(np.int64)])


def is_of_first(state: Any, bag: "HashedMiner") -> bool:
    """Whether a state is that of a bag over the first samples of a larger bag's, with the same labels."""
    config = state.get("config") if isinstance(state, Mapping) else None
    saved = config.get("num_samples") if isinstance(config, Mapping) else None
    if config is None or not isinstance(saved, int) or not 0 < saved < bag.num_samples:
        return False
    classes, class_of = numbered(bag.class_of[:saved])
    return config.get("labels") == label_fingerprint(bag.classes[classes], class_of)


def grown(state: Mapping[str, Any], bag: "HashedMiner") -> dict[str, Any]:
    """A state of the first samples of a bag's as one of all: the others are unseen, and a pass begins.

    Args:
        state: for which :func:`is_of_first` holds.
        bag: a larger one, whose own state does not count.

    Returns:
        What the bag can load; nothing is hashed anew, all is copied once.

    Raises:
        ValueError: if the state is of a bag with other arguments.
    """
    config = dict(state["config"]) | {name: value for name, value in bag._config().items() if name in _OF_THE_SET}
    bag._check_state(dict(state) | {"config": config})  # first: all that follows is of the shapes of its arguments
    saved = state["config"]["num_samples"]
    classes, _ = numbered(bag.class_of[:saved])  # where the identities of the state are among the bag's
    entries = classes if bag.unit == "identity" else np.arange(saved)

    def spread(values: Any, at: NDArray[Any], blank: NDArray[Any]) -> torch.Tensor:
        blank[at] = as_array(values)
        return torch.from_numpy(blank)

    # Samples stand class after class; those of the state come first in each, in the order that it has them.
    order = grouped(bag._classes.of, len(bag.classes)).order
    blank = RunningMeans(len(bag.classes), bag.dim if bag.pool else 0, 0.0).state_dict()
    table, means = dict(state["table"]), dict(state["means"])
    table |= {
        "num_samples": bag.num_entries,
        "members": torch.from_numpy(entries[as_array(table["members"])].astype(np.int32)),
        "near": spread(table["near"], entries, plain_order(bag.num_entries)),
    }
    for name in ("rows", "seen"):
        means[name] = spread(means[name], classes, blank[name].numpy()) if bag.pool else blank[name]
    return dict(state) | {
        "config": config,
        "drawn": 0,
        "order": spread(state["order"], np.flatnonzero(order < saved), order),
        "cursor": spread(state["cursor"], classes, np.zeros(len(bag.classes), dtype=np.int32)),
        "streams": torch.from_numpy(new_streams()),
        "table": table,
        "means": means,
        "corrected": spread(state["corrected"], entries, np.zeros(bag.num_entries, dtype=np.int32)),
    }
