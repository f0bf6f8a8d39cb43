"""One miner over several processes: each draws its share of one global batch, all keep the same table."""

import hashlib
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import ArrayLike
from torch import Tensor

from bonlib.core.checks import check_embeddings, check_indices, rows_of
from bonlib.core.layout import FORMS, Ids, tuple_positions
from bonlib.core.miner import Miner
from bonlib.core.processes import rank, world_size

_AHEAD = 1024  # batches that loaders may draw ahead


class LostRank(ConnectionError):
    """Another process has ended or does not answer; this one cannot go on."""


class RankMiner:
    """This process's share of the batches of a miner, under the protocol of :class:`~bonlib.core.miner.Miner`.

    Every process makes the same miner, with the same seed and the *global* batch size, and wraps it. All draw the same
    global batch and forward disjoint parts of it. At an update, indices and embeddings are gathered, so that every
    process corrects its table, and trains its hash, with the whole global batch in the order that one process would
    have: the miners stay equal bit by bit, and equal to that of one process given the same embeddings. On the wire are
    ``batch_size × (4 dim + 8)`` bytes a step.

    Args:
        miner: the same on all processes.

    Raises:
        ValueError: if the batch has fewer classes or tuples than there are processes.

    Our reading: the paper speaks of one process.
    """

    def __init__(self, miner: Miner) -> None:
        self.miner, self.form = miner, miner.form
        miner.ranked = True
        self._of_world: dict[int, list[Ids]] = {}
        self._drawn: deque[bytes] = deque(maxlen=_AHEAD)  # what stands for the last global batches
        self._parts()

    def _parts(self) -> list[Ids]:
        """Positions in the global batch of each process; the processes may be joined after this object was made."""
        size = world_size()
        if size not in self._of_world:
            self._of_world[size] = [share_of(self.miner, part, size) for part in range(size)]
        return self._of_world[size]

    @property
    def batch_size(self) -> int:
        """Indices in this process's part of a batch."""
        return len(self._parts()[rank()])

    @property
    def index_tuple(self) -> tuple[Tensor, ...] | None:
        """As :attr:`~bonlib.core.miner.Miner.index_tuple`, of this share."""
        return tuple_positions(self.form, self.batch_size)

    @property
    def due(self) -> bool:
        """As :attr:`~bonlib.core.miner.Miner.due`, the same on all processes."""
        return self.miner.due

    def refresh(self, embed: Callable[[Ids], Tensor]) -> None:
        """Rank 0 looks at the data set, and all get what it saw."""
        self.miner.refresh(self._seen_by_all(embed))

    def fill(self, embed: Callable[[Ids], Tensor], **options: Any) -> None:
        """As ``fill`` of a :class:`~bonlib.bag.BagOfNegatives`; rank 0 looks at the data set, all get what it saw.

        Raises:
            ValueError: if the miner has no table to fill.
        """
        if (fill := getattr(self.miner, "fill", None)) is None:
            raise ValueError(f"miner is a {type(self.miner).__name__}, which has no table to fill; leave it out.")
        fill(self._seen_by_all(embed), **options)

    def _seen_by_all(self, embed: Callable[[Ids], Tensor]) -> Callable[[Ids], Tensor]:
        """Embeddings as rank 0 has them: those of others may differ by their last digits, and so would the codes."""

        def seen(indices: Ids) -> Tensor:
            found = torch.empty(len(indices), self.miner.dim, dtype=torch.float32)

            def look() -> None:  # and check: the others receive into float32 of this shape, whatever comes
                found.copy_(self.miner.checked(indices, embed(indices))[1])

            from_rank_zero(look)
            return _guarded(lambda: _broadcast(found))

        return seen

    def __len__(self) -> int:
        """Batches that one iteration yields."""
        return len(self.miner)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield this process's parts of the global batches.

        Raises:
            ValueError: if the miners of the processes are not the same; this is seen as a pass begins.
        """
        self.refuse_others()
        for batch in self.miner:
            if world_size() > 1:
                self._drawn.append(_of_batch(batch))
            yield np.asarray(batch)[self._parts()[rank()]].tolist()

    def refuse_others(self, data: str = "") -> None:
        """Refuse to draw from miners that differ: some samples would be drawn twice, and tables drift apart.

        Args:
            data: what stands for the data of this process.

        Raises:
            ValueError: if the states of the miners differ by a bit, or the data do.
        """
        told = of_all_ranks((_digest(self.miner.state_dict()), data) if world_size() > 1 else "")
        if others := [i for i, one in enumerate(told) if one != told[0]]:
            raise ValueError(
                f"The miners of the processes {', '.join(map(str, others))} are not that of process 0; make them with "
                "the same data, labels, arguments and seed, fill them by RankMiner.fill, and load the same state."
            )

    def update(self, indices: ArrayLike | Tensor, embeddings: Any) -> None:
        """Tell all processes what this one's encoder made of its part; all must call it, in the same order.

        Args:
            indices: ``(part,)`` dataset indices.
            embeddings: ``(part, dim)``.

        Raises:
            ValueError: if they are not what :meth:`~bonlib.core.miner.Miner.update` takes.
            LostRank: if another process has ended.
        """
        take = check_embeddings if _on_gpu() else rows_of  # NCCL sends what is on the GPU
        rows = take(embeddings, self.miner.dim)
        ids = torch.from_numpy(check_indices("indices", indices, self.miner.num_samples, length=len(rows)))
        all_ids, all_rows, sizes = _guarded(lambda: _gather(ids, rows))
        parts = self._parts()
        if sizes == [len(part) for part in parts]:  # back into the order of the global batch
            order = torch.from_numpy(np.argsort(np.concatenate(parts)))
            all_ids, all_rows = all_ids[order], all_rows[order.to(all_rows.device)]
        if world_size() > 1 and self._drawn and _of_batch(all_ids.cpu()) not in self._drawn:
            warnings.warn(
                "The parts of the processes make no batch that was drawn: is it parted once more, by "
                "accelerator.prepare? A RankMiner's batches are each process's own already.",
                stacklevel=2,
            )
        self.miner.update(all_ids.cpu(), all_rows)

    def stats(self) -> dict[str, float]:
        """As :meth:`~bonlib.core.miner.Miner.stats`, the same on all processes."""
        return self.miner.stats()

    def set_epoch(self, epoch: int) -> None:
        """As :meth:`~bonlib.core.miner.Miner.set_epoch`."""
        self.miner.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Of the miner itself: it loads on any number of processes, and without torch.distributed."""
        return self.miner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state."""
        self.miner.load_state_dict(state)


def share_of(miner: Miner, part: int, parts: int) -> Ids:
    """Positions in the global batch that a process forwards: whole classes of a set, whole triplets or pairs.

    Args:
        miner: whose batches are shared.
        part: rank of the process.
        parts: number of processes.

    Raises:
        ValueError: if there are fewer classes or tuples in a batch than processes.
    """
    blocks = FORMS[miner.form]
    units = miner.batch_size // (blocks or miner.per_class)
    if units < parts:
        name = "tuples" if blocks else "classes"
        raise ValueError(
            f"A batch of {miner.batch_size} has {units} {name} for {parts} processes; give a larger batch."
        )
    mine = np.array_split(np.arange(units), parts)[part]
    if blocks:
        return np.concatenate([mine + block * units for block in range(blocks)])
    return (mine[:, None] * miner.per_class + np.arange(miner.per_class)).ravel()


def from_rank_zero(make: Callable[[], Any]) -> Any:
    """What ``make`` returns on rank 0, on all processes; what it raises there is raised on all.

    Raises:
        LostRank: if another process has ended.
    """
    if world_size() == 1:
        return make()
    box: list[Any] = [None, None]
    if rank() == 0:
        try:
            box[0] = make()
        except Exception as error:  # the others would wait for what does not come
            known = type(error).__module__ == "builtins"
            box[1] = error if known else RuntimeError(f"{type(error).__name__} on rank 0: {error}")
    _guarded(lambda: dist.broadcast_object_list(box, src=0))
    if box[1] is not None:
        raise box[1]
    return box[0]


def _of_batch(ids: ArrayLike | Tensor) -> bytes:
    """What stands for a batch, whatever its order."""
    return hashlib.sha256(np.sort(np.asarray(ids, dtype=np.int64)).tobytes()).digest()


def _digest(value: Any) -> str:
    """Of a state: tensors to the bit, whatever else by its text."""
    if isinstance(value, Mapping):
        value = [(name, _digest(part)) for name, part in value.items()]
    content = value.contiguous().numpy().tobytes() if isinstance(value, Tensor) else repr(value).encode()
    return hashlib.sha256(content).hexdigest()


def of_all_ranks(value: Any) -> list[Any]:
    """What each process gave, in the order of their ranks, on all of them; for small values.

    Raises:
        LostRank: if another process has ended.
    """
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    _guarded(lambda: dist.all_gather_object(values, value))
    return values


def _gather(ids: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, list[int]]:
    """Indices and embeddings of all processes, in the order of their ranks, and how many each gave."""
    if world_size() == 1:
        return ids, rows, [len(ids)]
    device = _device(rows)
    own = torch.tensor([len(ids)], device=device)
    counts = [torch.zeros_like(own) for _ in range(world_size())]
    dist.all_gather(counts, own)
    sizes = [int(count) for count in counts]
    gathered = []
    for values in (ids, rows):
        # Collectives want equal shapes: shorter parts are padded, and cut again.
        padded = values.new_zeros((max(sizes), *values.shape[1:]), device=device)
        padded[: len(values)] = values
        received = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(received, padded)
        gathered.append(torch.cat([part[:size] for part, size in zip(received, sizes, strict=True)]))
    return gathered[0], gathered[1], sizes


def _broadcast(values: Tensor) -> Tensor:
    if world_size() == 1:
        return values
    sent = values.contiguous().to(_device(values))
    dist.broadcast(sent, src=0)
    return sent.cpu()


def _device(values: Tensor) -> torch.device:
    """Where the backend can take tensors: NCCL on the GPU alone, gloo on the CPU."""
    if _on_gpu():
        return values.device if values.is_cuda else torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _on_gpu() -> bool:
    """Whether the backend takes tensors on the GPU alone."""
    return world_size() > 1 and dist.get_backend() == "nccl"


def _guarded(collective: Callable[[], Any]) -> Any:
    try:
        return collective()
    except RuntimeError as error:
        first = str(error).strip().splitlines()[0]
        raise LostRank(
            f"Rank {rank()} of {world_size()} waited in vain for another one, which has ended or hangs ({first}). "
            "Start all anew; they resume from the last checkpoint."
        ) from error
