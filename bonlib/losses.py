"""Losses by name, from pytorch-metric-learning, with their miners inside the batch, set up for each form."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bonlib.sampling import Form

IndexTuple = tuple[Tensor, ...]


@dataclass(frozen=True)
class _Recipe:
    """How to make a loss: from ``margin``, the loss, its miner inside the batch, and the forms it takes."""

    loss: Callable[[float], nn.Module]
    miner: Callable[[float], nn.Module] | None = None
    forms: tuple[Form, ...] = ("set",)
    margin: float = 0.2


def _recipes() -> dict[str, _Recipe]:
    from pytorch_metric_learning import losses, miners, reducers

    def triplet(margin: float) -> nn.Module:
        return losses.TripletMarginLoss(margin=margin)

    def soft(_: float) -> nn.Module:
        return losses.TripletMarginLoss(margin=0, smooth_loss=True, reducer=reducers.MeanReducer())

    def contrastive(margin: float) -> nn.Module:
        return losses.ContrastiveLoss(neg_margin=margin)  # pyright: ignore[reportArgumentType]

    def lifted(margin: float) -> nn.Module:
        return losses.LiftedStructureLoss(neg_margin=margin)  # pyright: ignore[reportArgumentType]

    def margin_loss(margin: float) -> nn.Module:
        return losses.MarginLoss(margin=margin, beta=1.2)

    return {
        "contrastive": _Recipe(contrastive, forms=("set", "pair"), margin=0.5),
        "triplet": _Recipe(triplet, forms=("set", "triplet")),
        "soft-triplet": _Recipe(soft, forms=("set", "triplet")),
        "batch-hard": _Recipe(triplet, lambda _: miners.BatchHardMiner()),
        "batch-hard-soft": _Recipe(soft, lambda _: miners.BatchHardMiner()),
        "semi-hard": _Recipe(triplet, lambda m: miners.TripletMarginMiner(m, type_of_triplets="semihard")),
        "lifted-structure": _Recipe(lifted, margin=1.0),
        "multi-similarity": _Recipe(
            lambda m: losses.MultiSimilarityLoss(alpha=2, beta=50, base=m),
            lambda _: miners.MultiSimilarityMiner(0.1),
            margin=0.5,
        ),
        "margin": _Recipe(margin_loss, forms=("set", "triplet")),
        "distance-weighted": _Recipe(margin_loss, lambda _: miners.DistanceWeightedMiner(0.5, 1.4)),
    }


def list_losses(form: Form | None = None) -> list[str]:
    """Names that :func:`make_loss` takes, all or those that go with ``form``."""
    return sorted(name for name, recipe in _recipes().items() if form is None or form in recipe.forms)


class MinedLoss(nn.Module):
    """A loss over the tuples of a batch: those that the sampler laid out, or those mined inside the batch.

    Called with ``(embeddings, labels, index_tuple)`` it returns the loss and the share of active tuples. A tuple is
    active when it pulls at the encoder: a triplet whose negative is not farther than its positive by the margin, a
    negative pair nearer than the margin. Where a loss mines its own tuples, each anchor's hardest triplet counts.
    """

    def __init__(self, loss: nn.Module, miner: nn.Module | None, margin: float) -> None:
        super().__init__()
        self.loss, self.miner, self.margin = loss, miner, margin

    def forward(
        self, embeddings: Tensor, labels: Tensor, index_tuple: IndexTuple | None = None
    ) -> tuple[Tensor, float]:
        """Loss of a batch.

        Args:
            embeddings: ``(batch, dim)``.
            labels: ``(batch,)`` int64.
            index_tuple: the sampler's: ``(a, p, n)``, ``(a1, p, a2, n)``, or ``None`` to mine inside the batch.

        Returns:
            The loss, a scalar tensor, and the share of active tuples in 0 to 1.
        """
        tuples = index_tuple
        if tuples is None and self.miner is not None:
            tuples = self.miner(embeddings, labels)
        return self.loss(embeddings, labels, tuples), active_share(embeddings, labels, index_tuple, self.margin)


def make_loss(name: str, form: Form = "set", *, margin: float | None = None) -> MinedLoss:
    """A loss for batches of a form.

    Args:
        name: one of :func:`list_losses`: contrastive (Hadsell 2006), triplet (Weinberger 2009, margin on Euclidean
            distances), soft-triplet, batch-hard and batch-hard-soft (Hermans 2017), semi-hard (Schroff 2015),
            lifted-structure (Song 2016), multi-similarity (Wang 2019), margin, and the same with
            distance-weighted mining inside the batch (Wu 2017).
        form: form of the batches, ``"set"``, ``"triplet"`` or ``"pair"``.
        margin: the loss's margin; by default the one that is usual for it.

    Raises:
        ValueError: if there is no such loss, or it does not take batches of that form.

    Example:
        >>> loss = make_loss("batch-hard")
        >>> value, active = loss(torch.eye(4), torch.tensor([0, 0, 1, 1]))
        >>> round(float(value), 3), active  # all distances are equal: the margin remains
        (0.2, 1.0)
    """
    recipes = _recipes()
    if name not in recipes or form not in recipes[name].forms:
        raise ValueError(f"loss {name!r} does not go with form {form!r}; allowed are {', '.join(list_losses(form))}.")
    recipe = recipes[name]
    margin = recipe.margin if margin is None else margin
    return MinedLoss(recipe.loss(margin), recipe.miner and recipe.miner(margin), margin)


@torch.no_grad()
def active_share(embeddings: Tensor, labels: Tensor, index_tuple: IndexTuple | None, margin: float) -> float:
    """Share of tuples with a positive loss, by Euclidean distance of normalised embeddings (see :class:`MinedLoss`)."""
    unit = torch.nn.functional.normalize(embeddings.float(), dim=1)
    if index_tuple is None:
        distances = torch.cdist(unit, unit)  # (batch, batch)
        same = labels[:, None] == labels[None, :]
        farthest = distances.masked_fill(~same, -torch.inf).amax(dim=1)
        nearest = distances.masked_fill(same, torch.inf).amin(dim=1)
        return float((farthest + margin > nearest).float().mean())
    anchor, negative = index_tuple[-2] if len(index_tuple) == 4 else index_tuple[0], index_tuple[-1]
    far = (unit[anchor] - unit[negative]).norm(dim=1)
    if len(index_tuple) == 4:
        return float((far < margin).float().mean())
    near = (unit[anchor] - unit[index_tuple[1]]).norm(dim=1)
    return float((near + margin > far).float().mean())
