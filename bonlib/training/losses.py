"""Losses by name, from pytorch-metric-learning, with their miners inside the batch, set up for each form."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bonlib.core.checks import needs_extra, real_number, whole_number
from bonlib.core.layout import Form
from bonlib.core.tuples import IndexTuple, active_share
from bonlib.training.sampled_softmax import SampledSoftmax


@dataclass(frozen=True)
class _Recipe:
    """How to make a loss: from ``margin`` and options, the loss, its miner inside the batch, and the forms it takes."""

    loss: Callable[..., nn.Module]
    miner: Callable[[float], nn.Module] | None = None
    forms: tuple[Form, ...] = ("set",)
    margin: float = 0.2
    smooth: bool = False  # whether it is never zero, so that all tuples are active or none is told from another


def _recipes() -> dict[str, _Recipe]:
    with needs_extra("make_loss"):
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

    def cross_batch(margin: float, dim: int, memory_size: int = 4096) -> nn.Module:
        return _cross_batch_memory()(contrastive(margin), dim, memory_size)

    def cosface(margin: float, dim: int, num_classes: int, scale: int = 64) -> nn.Module:
        return losses.CosFaceLoss(num_classes, dim, margin=margin, scale=scale)

    def sampled_softmax(
        margin: float, dim: int, num_classes: int, share: float = 0.1, near: int = 0, scale: float = 16, seed: int = 0
    ) -> nn.Module:
        return SampledSoftmax(num_classes, dim, share=share, near=near, margin=margin, scale=scale, seed=seed)

    def proxy_anchor(margin: float, dim: int, num_classes: int, alpha: int = 32) -> nn.Module:
        return losses.ProxyAnchorLoss(num_classes, dim, margin=margin, alpha=alpha)

    return {
        "contrastive": _Recipe(contrastive, forms=("set", "pair"), margin=0.5),
        "triplet": _Recipe(triplet, forms=("set", "triplet")),
        "soft-triplet": _Recipe(soft, forms=("set", "triplet"), smooth=True),
        "batch-hard": _Recipe(triplet, lambda _: miners.BatchHardMiner()),
        "batch-hard-soft": _Recipe(soft, lambda _: miners.BatchHardMiner(), smooth=True),
        "semi-hard": _Recipe(triplet, lambda m: miners.TripletMarginMiner(m, type_of_triplets="semihard")),
        "lifted-structure": _Recipe(lifted, margin=1.0),
        "multi-similarity": _Recipe(
            lambda m: losses.MultiSimilarityLoss(alpha=2, beta=50, base=m),
            lambda _: miners.MultiSimilarityMiner(0.1),
            margin=0.5,
            smooth=True,
        ),
        "infonce": _Recipe(InfoNCE, forms=("set", "pair"), margin=0.1, smooth=True),
        "margin": _Recipe(margin_loss, forms=("set", "triplet")),
        "distance-weighted": _Recipe(margin_loss, lambda _: miners.DistanceWeightedMiner(0.5, 1.4)),
        "cross-batch-memory": _Recipe(cross_batch, margin=1.0),
        "cosface": _Recipe(cosface, margin=0.35, smooth=True),
        "sampled-softmax": _Recipe(sampled_softmax, margin=0.35, smooth=True),
        "proxy-anchor": _Recipe(proxy_anchor, margin=0.1, smooth=True),
    }


def _cross_batch_memory() -> type:
    from pytorch_metric_learning.losses import CrossBatchMemory

    class WholeMemory(CrossBatchMemory):
        """With the pointer into the queue in the state, which the library's leaves out."""

        def get_extra_state(self) -> dict[str, Any]:
            return {"queue_idx": self.queue_idx, "has_been_filled": self.has_been_filled}

        def set_extra_state(self, state: dict[str, Any]) -> None:
            self.queue_idx, self.has_been_filled = state["queue_idx"], state["has_been_filled"]

    return WholeMemory


class InfoNCE(nn.Module):
    """Each positive pair against all negatives of its anchor in the batch, mean over the pairs; of cosines.

    The value is that of pytorch-metric-learning's ``NTXentLoss``, whose memory grows with the cube of the batch.

    Args:
        temperature: that similarities are divided by, above 0.

    Source: van den Oord, Li, Vinyals, "Representation learning with contrastive predictive coding", 2018.
    """

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = real_number("temperature", temperature, 0)
        if not self.temperature:
            raise ValueError("temperature is 0, the margin of infonce; give a number above 0, such as 0.1.")

    def extra_repr(self) -> str:
        """The temperature, for those who print the loss."""
        return f"temperature={self.temperature}"

    def forward(self, embeddings: Tensor, labels: Tensor, _: IndexTuple | None = None) -> Tensor:
        """Embeddings ``(batch, dim)`` and labels ``(batch,)`` to a scalar; 0 where no two are of one label."""
        rows = nn.functional.normalize(embeddings.float())
        with torch.autocast(rows.device.type, enabled=False):  # similarities of a few digits would be divided by 0.1
            logits = rows @ rows.T / self.temperature  # (batch, batch)
        same = labels[:, None] == labels
        negatives = logits.masked_fill(same, -torch.inf).logsumexp(dim=1, keepdim=True)  # (batch, 1)
        positive = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
        losses = nn.functional.softplus(negatives - logits)[positive]
        return losses.sum() / max(len(losses), 1)


def list_losses(form: Form | None = None) -> list[str]:
    """Names that :func:`make_loss` takes, all or those that go with ``form``."""
    return sorted(name for name, recipe in _recipes().items() if form is None or form in recipe.forms)


class MinedLoss(nn.Module):
    """A loss over the tuples of a batch: those that the sampler laid out, or those mined inside the batch.

    Called with ``(embeddings, labels, index_tuple)`` it returns the loss and the share of active tuples. A tuple is
    active when it pulls at the encoder: a triplet whose negative is not farther than its positive by the margin, a
    negative pair nearer than the margin. Where a loss mines its own tuples, each anchor's hardest triplet counts.
    Of a smooth loss, which no tuple brings to zero, the share is not known.
    """

    def __init__(self, loss: nn.Module, miner: nn.Module | None, margin: float | None) -> None:
        super().__init__()
        self.loss, self.miner, self.margin = loss, miner, margin  # None: smooth

    def forward(
        self, embeddings: Tensor, labels: Tensor, index_tuple: IndexTuple | None = None
    ) -> tuple[Tensor, float]:
        """Loss of a batch.

        Args:
            embeddings: ``(batch, dim)``.
            labels: ``(batch,)`` int64.
            index_tuple: the sampler's: ``(a, p, n)``, ``(a1, p, a2, n)``, or ``None`` to mine inside the batch.

        Returns:
            The loss, a scalar tensor, and the share of active tuples in 0 to 1, NaN for a smooth loss.
        """
        tuples = index_tuple
        if tuples is None and self.miner is not None:
            tuples = self.miner(embeddings, labels)
        loss = self.loss(embeddings, labels, tuples)
        if self.margin is None:
            return loss, math.nan
        return loss, active_share(embeddings, labels, index_tuple, self.margin)


def has_centres(loss: nn.Module) -> bool:
    """Whether a loss of :func:`make_loss` has a centre for each class, as :func:`set_centres` takes it."""
    inner = getattr(loss, "loss", loss)
    return isinstance(inner, SampledSoftmax) or hasattr(inner, "W") or hasattr(inner, "proxies")


def set_centres(loss: nn.Module, centres: Tensor) -> None:
    """Let the class centres of a loss begin where a trained encoder has the classes; from anywhere they take long.

    Args:
        loss: of :func:`make_loss`: cosface, proxy-anchor or sampled-softmax.
        centres: ``(num_classes, dim)``, such as the mean embedding of each class.

    Raises:
        ValueError: if the loss has no centres, or others than these; it is then as before.
    """
    inner: Any = getattr(loss, "loss", loss)
    if not has_centres(loss):
        raise ValueError(f"loss is {type(inner).__name__}, which has no class centres; take sampled-softmax.")
    if isinstance(inner, SampledSoftmax):
        inner.set_centres(centres)
        return
    weights = inner.W.T if hasattr(inner, "W") else inner.proxies  # (num_classes, dim)
    if weights.shape != centres.shape:
        raise ValueError(f"centres has shape {tuple(centres.shape)}; this loss takes {tuple(weights.shape)}.")
    with torch.no_grad():
        weights.copy_(centres)


def make_loss(
    name: str, form: Form = "set", *, margin: float | None = None, seed: int = 0, **options: Any
) -> MinedLoss:
    """A loss for batches of a form.

    Args:
        name: one of :func:`list_losses`: contrastive (Hadsell 2006), triplet (Weinberger 2009, margin on Euclidean
            distances), soft-triplet, batch-hard and batch-hard-soft (Hermans 2017), semi-hard (Schroff 2015),
            lifted-structure (Song 2016), multi-similarity (Wang 2019), infonce (van den Oord 2018; ``margin`` is its
            temperature, and a positive pair stands against all negatives of its anchor), margin, and the same with
            distance-weighted mining inside the batch (Wu 2017); cross-batch-memory, contrastive against a queue of
            past embeddings (Wang 2020); without mining, cosface (Wang 2018) and proxy-anchor (Kim 2020), whose
            memory is a vector a class, and sampled-softmax, cosface over few of the classes
            (:class:`~bonlib.training.sampled_softmax.SampledSoftmax`).
        form: form of the batches, ``"set"``, ``"triplet"`` or ``"pair"``.
        margin: the loss's margin; by default the one that is usual for it. Soft losses have none.
        seed: of the loss's own weights, where it has any.
        **options: what the loss needs of ``dim`` and ``num_classes`` is taken, and the loss's own:
            ``memory_size`` of cross-batch-memory, ``scale`` of cosface and sampled-softmax, ``share`` and ``near`` of
            the latter, ``alpha`` of proxy-anchor.

    Raises:
        ValueError: if there is no such loss, it does not take batches of that form, or an option is missing or unknown,
            or has no effect.

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
    takes = inspect.signature(recipe.loss).parameters
    if margin is not None and "_" in takes:
        raise ValueError(f"margin is {margin!r}, but loss {name!r} has none; leave it out.")
    margin = recipe.margin if margin is None else real_number("margin", margin, 0)
    given = {key: value for key, value in options.items() if key in takes}
    given |= {"seed": seed} if "seed" in takes else {}
    for key in {"alpha", "scale"} & set(given):
        given[key] = real_number(key, given[key], 0)
        if not given[key]:
            raise ValueError(f"{key} is 0; give a number above 0.")
    if "memory_size" in given:
        given["memory_size"] = whole_number("memory_size", given["memory_size"], 1)
    missing = [key for key, value in list(takes.items())[1:] if value.default is value.empty and given.get(key) is None]
    if unknown := set(options) - set(given) - {"dim", "num_classes"}:
        raise ValueError(f"loss {name!r} has no option {sorted(unknown)}; it has {list(takes)[1:]}.")
    if missing:
        raise ValueError(f"loss {name!r} needs {', '.join(missing)}; give it, as {missing[0]}=….")
    with torch.random.fork_rng(devices=[]):  # weights of a loss are drawn from the global generator
        torch.default_generator.manual_seed(seed)  # that of the CPU alone
        return MinedLoss(
            recipe.loss(margin, **given), recipe.miner and recipe.miner(margin), None if recipe.smooth else margin
        )
