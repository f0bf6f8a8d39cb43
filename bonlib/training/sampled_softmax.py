"""Classification over very many classes: a softmax over those of a batch, those near it, and a few random ones."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bonlib.bag import BagOfNegatives
from bonlib.core.checks import as_array, check_indices, own_state, real_number, rows_of, whole_number
from bonlib.core.layout import Ids
from bonlib.core.processes import world_size
from bonlib.core.tuples import IndexTuple
from bonlib.lookalikes import nearest_identities


class SampledSoftmax(nn.Module):
    """CosFace over few of many class centres: those of the batch, random ones, and, where asked for, those near it.

    The random ones stand for all classes that are left out: their share of the softmax is multiplied by the number of
    classes that each stands for, so that the sum over all classes is met in expectation. At least as many are drawn as
    the batch has classes, whatever the share. By default all others are random, as Partial FC draws them; with
    ``share=1`` it is CosFace over all classes. With ``near`` centres are hashed as identities are; those that the
    optimiser moved are corrected before the next batch. Gradients of the centres are sparse: give them to
    ``torch.optim.SparseAdam``, or to :func:`~bonlib.training.loop.fit`, which does so. One process alone.

    Args:
        num_classes: number of classes; labels are ``0 .. num_classes - 1``.
        dim: width of the embeddings.
        share: of the classes that a batch is compared with, above 0 to 1, the near ones counted.
        near: centres near each sample that take part too, from their buckets; by default none, for they are worth no
            more than random ones (docs/results.md, very many classes).
        margin: that the cosine with the own centre has to make up for.
        scale: that cosines are multiplied by.
        seed: of the centres, the hash, and the random classes.

    Raises:
        ValueError: if an argument is out of its range.

    Source: the softmax over a sample of centres is Partial FC (An et al., "Partial FC: training 10 million identities
    on a single machine", ICCV workshops 2021), the margin CosFace (Wang et al., CVPR 2018), the weight of the random
    classes Bengio, Senécal (2008). Near classes from a bag are ours.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        share: float = 0.1,
        near: int = 0,
        margin: float = 0.35,
        scale: float = 16.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes = whole_number("num_classes", num_classes, 2)
        self.dim = dim = whole_number("dim", dim, 1)
        self.seed = seed = whole_number("seed", seed, 0)
        self.share, self.near = real_number("share", share, 0, 1), whole_number("near", near, 0, 64)
        if not self.share:
            raise ValueError("share is 0; give the part of the classes that a batch is compared with, such as 0.1.")
        self.margin, self.scale = real_number("margin", margin, 0), real_number("scale", scale, 0)
        self.centres = nn.Embedding(num_classes, dim, sparse=True, _weight=torch.empty(num_classes, dim))
        self.bag: BagOfNegatives | None = None
        self._rng = np.random.default_rng([seed, 2])
        self.set_centres(torch.randn(num_classes, dim, generator=torch.Generator().manual_seed(seed)))

    def set_centres(self, centres: Tensor) -> None:
        """Begin anew from these centres, such as the means that a trained encoder gives the classes.

        Args:
            centres: ``(num_classes, dim)``; they are scaled to length one.

        Raises:
            ValueError: if they are of another shape or not finite; the centres are then as before.
        """
        weights = nn.functional.normalize(rows_of(centres, self.dim))
        if len(weights) != self.num_classes:
            raise ValueError(f"centres has length {len(weights)}; give one row for each of {self.num_classes} classes.")
        if self.near:
            self.bag = BagOfNegatives(
                np.arange(self.num_classes), self.dim, batch_size=2, per_class=1, momentum=0.0, seed=self.seed
            )
            self.bag.fill(lambda ids: weights[ids])
        with torch.no_grad():
            self.centres.weight.copy_(weights)
        self._moved: Ids = np.empty(0, dtype=np.int64)  # classes whose centres the optimiser may have moved
        self._version = self.centres.weight._version  # rises at each step of the optimiser

    def forward(self, embeddings: Tensor, labels: Tensor, _: IndexTuple | None = None) -> Tensor:
        """Mean loss of a batch: embeddings ``(batch, dim)``, labels ``(batch,)`` to a scalar.

        Raises:
            ValueError: if a label is no class, or there are several processes, whose centres would part.
        """
        if world_size() > 1:
            raise ValueError(f"loss is a SampledSoftmax, with {world_size()} processes; it is for one, take cosface.")
        rows = nn.functional.normalize(embeddings.float())
        classes = check_indices("labels", labels, self.num_classes)
        certain, own = self._certain(rows.detach(), classes)
        random = self._random(certain, least=len(np.unique(classes)))
        ids = torch.from_numpy(np.concatenate([certain, random])).to(rows.device)
        with torch.autocast(rows.device.type, enabled=False):  # cosines of a few digits would be multiplied by 16
            logits = rows @ nn.functional.normalize(self.centres(ids).float()).T  # (batch, classes)
        place = torch.from_numpy(own).to(rows.device)
        logits = self.scale * logits.scatter_add(1, place[:, None], logits.new_full((len(rows), 1), -self.margin))
        if len(random):
            stands_for = (self.num_classes - len(certain)) / len(random)
            logits[:, len(certain) :] += math.log(stands_for)
        if self.training and self.bag is not None:
            self._moved = np.union1d(self._moved, ids.cpu().numpy())
        return nn.functional.cross_entropy(logits, place)

    def _certain(self, rows: Tensor, classes: Ids) -> tuple[Ids, Ids]:
        """The classes that take part for sure, sorted, and the place of each sample's own among them."""
        found = classes
        if self.bag is not None and len(self._moved) and self._version != self.centres.weight._version:
            weights = self.centres.weight[torch.from_numpy(self._moved).to(rows.device)].detach()
            self.bag.correct(self._moved, nn.functional.normalize(weights))
            self._moved, self._version = np.empty(0, dtype=np.int64), self.centres.weight._version
        if self.bag is not None and bool(torch.isfinite(rows).all()):  # else the loss is not finite, and says so
            near, _ = nearest_identities(self.bag, rows, self.near, without=classes)
            found = np.concatenate([classes, near[near >= 0]])
        certain = np.unique(found)
        return certain, np.searchsorted(certain, classes)

    def _random(self, certain: Ids, least: int) -> Ids:
        """Other classes, each at most once, as many as the share leaves room for, and ``least`` of them."""
        left = self.num_classes - len(certain)
        wanted = min(max(round(self.share * self.num_classes) - len(certain), least), left)
        if wanted * 4 > left:
            others = np.setdiff1d(np.arange(self.num_classes), certain, assume_unique=True)
            return others if wanted >= left else self._rng.choice(others, wanted, replace=False)
        drawn: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        while len(drawn) < wanted:  # a few rounds: three quarters of the classes are free
            more = np.setdiff1d(self._rng.integers(0, self.num_classes, wanted), certain)
            drawn = np.union1d(drawn, more)
        return self._rng.permutation(drawn)[:wanted]

    def get_extra_state(self) -> dict[str, Any]:
        """What the next batch depends on beside the centres."""
        bag = {} if self.bag is None else {"bag": self.bag.state_dict()}
        return bag | self.before_step()

    def before_step(self) -> dict[str, Any]:
        """What a step changes beside weights and codes; codes follow from the weights at the next step."""
        return {
            "made": self.extra_repr(),
            "rng": self._rng.bit_generator.state,
            "moved": torch.from_numpy(self._moved.copy()),
        }

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take over a state.

        Raises:
            ValueError: if it is of another loss, or damaged; nothing is changed then.
        """
        own_state(state, "a sampled softmax", ("made", "rng", "moved", *(() if self.bag is None else ("bag",))))
        if state["made"] != self.extra_repr():
            raise ValueError(f"state is of a loss with {state['made']}, this one has {self.extra_repr()}; make it so.")
        moved = check_indices("moved", state["moved"], self.num_classes)
        if self.bag is not None:
            self.bag.load_state_dict(state["bag"])
        self.put_back({**state, "moved": moved})

    def put_back(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`before_step` gave."""
        rng = np.random.default_rng()
        rng.bit_generator.state = state["rng"]
        self._rng, self._moved, self._version = rng, as_array(state["moved"]), -1  # the centres may be others'

    def extra_repr(self) -> str:
        """What it was made with, for those who print it, and for checkpoints."""
        names = ("num_classes", "dim", "share", "near", "margin", "scale", "seed")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)
