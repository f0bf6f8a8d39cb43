"""A table filled at once: the hash learns from some of the data set, then every entry gets its code."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bonlib.core.kernels import grouped, some_of_each
from bonlib.core.layout import Ids
from bonlib.core.means import RunningMeans

if TYPE_CHECKING:
    from bonlib.core.hashed import HashedMiner

_LEARNED, _BATCH = 200, 128  # batches that the hash learns from, and their size


def fill(
    bag: "HashedMiner",
    embed: Callable[[Ids], Tensor],
    correct: Callable[[Ids, Tensor], Any],
    per_class: int | None,
    at_once: int,
) -> None:
    """Give every entry its code; see ``fill`` of :class:`~bonlib.bag.BagOfNegatives`, which checks what comes here.

    Args:
        bag: what it knew of other embeddings is forgotten; where this raises it is half filled.
        embed: indices ``(n,)`` to embeddings ``(n, dim)``.
        correct: gives samples the codes of their embeddings.
        per_class: samples of each identity that are looked at, or all.
        at_once: indices in a call of ``embed``, at most twice as many.
    """
    looked, first = bag._classes.order.astype(np.int64), bag._classes.first
    if per_class is not None:
        looked, first = some_of_each(grouped(bag._classes.of, len(bag.classes)), per_class)
    rng, evenly = np.random.default_rng([bag.seed, 1]), looked
    if per_class is None and bag.unit == "identity":  # its centre is to be that of identities, not of the largest
        evenly, _ = some_of_each(grouped(bag._classes.of, len(bag.classes)), -(-_LEARNED * _BATCH // len(bag.classes)))
    some = rng.permutation(evenly)[: _LEARNED * _BATCH]
    known = torch.empty(len(some), bag.dim, dtype=torch.float32)
    for at in np.array_split(np.arange(len(some)), max(len(some) // at_once, 1)):
        known[at] = bag.checked(some[at], embed(some[at]))[1]  # copied: ``embed`` may use its memory again
    bag.hasher.begin_anew()
    for rows in known.tensor_split(-(-len(known) // _BATCH)):  # alike in size, for they weigh the same in its centre
        bag.hasher.partial_fit(rows)
    order = some.argsort()

    def look(ids: Ids) -> Tensor:
        """Embeddings of samples; those that the hash learned from are not asked for again."""
        at = order[np.searchsorted(some, ids, sorter=order).clip(max=len(some) - 1)]
        rows, new = known[torch.from_numpy(at)], some[at] != ids
        if new.any():
            rows[torch.from_numpy(new)] = bag.checked(ids[new], embed(ids[new]))[1]
        return rows

    bag._means = RunningMeans(len(bag.classes), bag.dim if bag.pool else 0, bag._means.momentum)
    # Whole classes at a time, so that a sketch is the mean of all samples of its identity, and of no old one.
    begins = first[np.flatnonzero(np.diff(first // at_once, prepend=-1))]
    for ids in np.split(looked, begins[1:]):
        parts = np.array_split(ids, -(-len(ids) // (2 * at_once)))
        correct(ids, torch.cat([look(part) for part in parts]))
