"""sentence-transformers: batches of look-alike texts for its trainer, its losses unchanged."""

import hashlib
import math
import secrets
import warnings
from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import BatchSampler, SequentialSampler

from bonlib.bag import BagOfNegatives
from bonlib.core.checks import needs_extra, whole_number
from bonlib.core.distributed import RankMiner
from bonlib.core.paths import write_atomically
from bonlib.core.processes import rank, world_size

with needs_extra("bonlib.integrations.sentence_transformers", extra="sentence-transformers"):
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from transformers import TrainerCallback

_FILE = "bag_of_negatives.pt"  # in a checkpoint's folder
_LOOKED = 64  # rows that stand for all
_LABEL = "label"  # the column that the trainer hands to a loss


class TextBag(TrainerCallback):
    """Rows of texts for ``SentenceTransformerTrainer``: batch sampler, loss and callback around one bag.

    A batch is made of rows that the encoder confuses, so that the negatives inside the batch are hard. Without labels
    each row, an anchor with its positive, is an identity of its own, and both texts are hashed. With labels rows of one
    label are one identity: single texts come in groups of ``per_class`` (for losses that find their triplets in the
    batch), rows of several texts one a label, so that no row is another one's false negative.

    Batches are random until each identity had its turn: for one pass over the rows, the whole of a training of one
    epoch, or until :meth:`fill`. An epoch has as many batches as the rows fill, but look-alikes come more often than
    others: after :meth:`fill` some four of ten rows are not in the first epoch. The bag compares lengths too: where
    the loss takes cosines, let the model end with ``Normalize()``.

    The loss is called as always. It may embed a batch in pieces (``CachedMultipleNegativesRankingLoss``): the bag takes
    the embeddings where they leave the model. The bag's state lies in each checkpoint of the trainer. To resume, give
    ``ignore_data_skip=True``: the bag knows its place, and the trainer must not skip batches. With several processes
    all make the same bag; each takes its turn of its batches, and every process learns from those of all; start them
    with torchrun. Resume in the same output folder.

    Args:
        dataset: rows of texts, columns in the order that the loss wants; and the labels, if there are any.
        loss: of sentence-transformers, for one data set.
        batch_size: rows, equal to ``per_device_train_batch_size``.
        label: name of the column of labels, integers; ``None``: each row is an identity.
        columns: how many text columns, from the first, are of the row's identity; a third may be a negative.
        **options: what :class:`~bonlib.bag.BagOfNegatives` takes, such as ``bags``, ``window`` or ``seed``.

    Attributes:
        bag: the bag; its samples are texts where there are no labels, and rows where there are.
        dataset: for the trainer's ``train_dataset``: the same rows, with their numbers as the column ``label``.
        loss: for the trainer's ``loss``.
        sampler: for ``batch_sampler`` of the training arguments; rows to evaluate on come in their order.

    Raises:
        ValueError: if the data set has no text column, no such label, or a label column that is not named.

    A whole run is ``examples/sentence_transformers_loop.py``.
    """

    def __init__(
        self,
        dataset: Dataset,
        loss: nn.Module,
        *,
        batch_size: int,
        label: str | None = None,
        columns: int = 2,
        **options: Any,
    ) -> None:
        if not isinstance(dataset, Dataset):
            raise ValueError(f"dataset is a {type(dataset).__name__}; give one Dataset, such as the split 'train'.")
        if _LABEL in dataset.column_names and label != _LABEL:
            raise ValueError(f"dataset has a column {_LABEL!r}; name it (label={_LABEL!r}), or remove it.")
        follow = {"form", "steps"} if label is not None else {"form", "steps", "per_class"}
        if given := sorted(follow & set(options)):
            raise ValueError(f"options has {', '.join(given)}, which follow from the rows; leave it out.")
        if label is not None and label not in dataset.column_names:
            raise ValueError(f"label is {label!r}; the columns are {', '.join(dataset.column_names)}.")
        texts = [name for name in dataset.column_names if name != label]
        taken = sorted({"labels", "score", "scores"} & set(texts))
        if not texts or taken:
            more = f", without {', '.join(taken)}" if taken else ""
            raise ValueError(f"dataset has the columns {', '.join(dataset.column_names)}; give texts{more}.")
        own = min(whole_number("columns", columns, 1), len(texts))
        rows = len(dataset)
        batch_size = whole_number("batch_size", batch_size, 2, rows, f"dataset has {rows} rows.")
        if label is None:
            self._texts, classes = own, np.arange(rows)
            layout = {"batch_size": batch_size * own, "per_class": own}
        else:
            self._texts, classes = 1, np.asarray(dataset[label])
            layout = {"batch_size": batch_size, "per_class": 1 if len(texts) > 1 else 4}
        self.own_columns, self.batch_size = own, batch_size
        _warn_of_repeats(dataset, texts[: max(own, 2)], classes)
        labels = classes.repeat(self._texts)
        self._fewest = int(np.unique(labels, return_counts=True)[1].min())  # texts of a class
        # An epoch of the trainer has as many batches as the rows fill.
        options = layout | {"steps": max(rows // batch_size, 1)} | options
        self.bag = BagOfNegatives(labels, int(_encoder(loss).get_embedding_dimension() or 0), **options)
        self._share = RankMiner(self.bag)
        self._run = secrets.token_hex(8)  # which run a checkpoint is of
        self._pending: list[list[int]] = []  # rows of batches that are drawn and not learned from yet
        self._left = 0  # batches of an epoch that was resumed in its middle
        some = np.linspace(0, rows - 1, min(rows, _LOOKED)).astype(int)
        self._rows = hashlib.sha256(repr(dataset.select(some)[:]).encode()).hexdigest()  # what stands for all
        self._classes = None if label is None else torch.from_numpy(classes)
        self.dataset = dataset.select_columns(texts).add_column(_LABEL, np.arange(rows))
        self.loss, self.sampler = _WatchedLoss(loss, self), _Sampler(self)

    def learn(self, rows: Tensor, embeddings: Tensor) -> None:
        """Tell the bag of a batch: numbers of its rows ``(batch,)``, embeddings ``(columns * batch, dim)``.

        Raises:
            ValueError: if these are not the rows of the next batch, or not each column of a row was embedded once.
        """
        if len(self._pending) <= rank() or rows.tolist() != self._pending[rank()]:
            raise ValueError(
                "The rows of this batch are not those that the bag drew; give the trainer train_dataset=mined.dataset "
                "as it is, batch_sampler=mined.sampler, and another data set to evaluate on."
            )
        if len(embeddings) < self.own_columns * len(rows) or len(embeddings) % len(rows):
            raise ValueError(
                f"The loss embedded {len(embeddings)} texts for {len(rows)} rows; the bag needs each column of a row "
                "embedded once, column after column."
            )
        own = self.own_columns
        parts = embeddings[: own * len(rows)].view(own, len(rows), -1)  # (columns, batch, dim)
        if self._texts == 1:
            ids, parts = rows, parts.mean(dim=0, keepdim=True)
        else:
            ids = torch.cat([rows * self._texts + column for column in range(self._texts)])
        self._share.update(ids, parts.flatten(0, 1)[:, : self.bag.dim])  # a model may cut them behind its last module
        del self._pending[: world_size()]

    def fill(self, batch_size: int = 64) -> None:
        """Give every row its code before the first batch: for an encoder that is trained already.

        Each text is encoded once, without prompt. With several processes all call it; rank 0 encodes.

        Args:
            batch_size: texts that are encoded at once.
        """
        encoder, columns = _encoder(self.loss), self.dataset.column_names[: self.own_columns]

        def embed(indices: NDArray[np.int64]) -> Tensor:
            rows, column = np.divmod(indices, self._texts)
            chosen = self.dataset[rows.tolist()]
            texts = [chosen[name] for name in columns]
            if self._texts > 1:
                texts = [[texts[c][i] for i, c in enumerate(column)]]
            parts = [encoder.encode(part, prompt="", batch_size=batch_size, convert_to_tensor=True) for part in texts]
            return torch.stack(parts).mean(dim=0).cpu()

        self._share.fill(embed)

    def labels_of(self, rows: Tensor) -> Tensor | None:
        """What the loss gets as labels of rows: ``(batch,)``, or nothing where there are none."""
        return None if self._classes is None else self._classes[rows.cpu()].to(rows.device)

    def holds(self, dataset: Dataset) -> bool:
        """Whether rows were taken from ``self.dataset``, numbers and all, by the first of them."""
        if dataset.column_names != self.dataset.column_names or not len(dataset):
            return False
        row = dataset[0]
        return row[_LABEL] in range(len(self.dataset)) and row == self.dataset[row[_LABEL]]

    def draw(self) -> Iterator[list[int]]:
        """Batches of row numbers, as many as an epoch has: first those that were drawn already, then new ones.

        Raises:
            ValueError: if the bags or the rows of the processes are not the same.
        """
        self._share.refuse_others(self._rows)
        left, self._left = self._left or len(self.bag), 0
        before = self._pending[:left]
        yield from before
        # Of the bag's next pass too, where a saved one ends within this epoch.
        for batch in islice(chain.from_iterable(repeat(self.bag)), left - len(before)):
            rows = list(dict.fromkeys(i // self._texts for i in batch))
            self._pending.append(rows)
            yield rows

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write the bag beside the trainer's checkpoint."""
        saved = {"bag": self.bag.state_dict(), "pending": [list(rows) for rows in self._pending]}
        saved |= {"run": self._run, "rows": self._rows}
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            write_atomically(folder / _FILE, lambda path: torch.save(saved, path))

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Where the trainer resumes, so does the bag.

        Raises:
            ValueError: if the trainer would skip or lose batches, or the checkpoint has no bag, or that of another run.
        """
        if state.global_step:
            self._resume(args, state)
        # Goes into the trainer's own checkpoints: one of another folder must not get the bag of this one.
        state.stateful_callbacks[_FILE] = {"args": {}, "attributes": {"run": self._run}}

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Say so where the bag was of no use."""
        drawn = self.bag.stats()
        if drawn["from_unseen"] and math.isclose(drawn["from_unseen"] + drawn["from_random"], 1):
            warnings.warn(
                f"All {state.global_step} steps had random batches: no row had a code before all had their turn; call "
                "fill() before the training, or train for more epochs.",
                stacklevel=2,
            )

    def _resume(self, args: Any, state: Any) -> None:
        file = Path(args.output_dir) / f"checkpoint-{state.global_step}" / _FILE
        if not args.ignore_data_skip:
            raise ValueError("The bag knows its place; resume with ignore_data_skip=True in the training arguments.")
        if not file.exists():
            raise ValueError(
                f"{file} is missing; resume in the output folder of the checkpoint, from one that this callback was "
                "there for."
            )
        saved = torch.load(file, weights_only=True)
        ours = state.stateful_callbacks.get(_FILE, {"attributes": {"run": saved.get("run")}})["attributes"]["run"]
        if saved.get("run") != ours:
            raise ValueError(f"{file} is of another run; resume in the output folder of the checkpoint.")
        if saved.get("rows", self._rows) != self._rows:
            raise ValueError(f"{file} is of other rows, or of these in another order; resume with those of the run.")
        epoch, many = len(self.bag) // world_size(), args.gradient_accumulation_steps  # batches of a process
        done = state.global_step % -(-epoch // many) * many
        if done and (epoch - done) % many:
            raise ValueError(
                f"gradient_accumulation_steps is {many}, and {epoch - done} of {epoch} batches are left in the epoch, "
                "of which the trainer would lose the last ones; resume from the end of an epoch "
                "(save_strategy='epoch'), or accumulate over a number that divides them."
            )
        self._left = len(self.bag) - done * world_size() if done else 0
        self.bag.load_state_dict(saved["bag"])
        self._pending, self._run = [list(rows) for rows in saved["pending"]], saved.get("run", self._run)


class _Batches(BatchSampler):
    """The batch sampler of the trainer, with what data loaders and accelerate ask of one."""

    def __init__(self, mined: TextBag) -> None:
        super().__init__(range(len(mined.dataset)), mined.batch_size, drop_last=True)
        self._mined = mined

    def __len__(self) -> int:
        return len(self._mined.bag)

    def __iter__(self) -> Iterator[list[int]]:
        return self._mined.draw()


class _Sampler:
    """What the trainer asks for batches; it is written with the arguments of the training, the bag is not."""

    def __init__(self, mined: TextBag | None = None) -> None:
        self._mined = mined

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return _Sampler, ()

    def __call__(self, dataset: Dataset, batch_size: int, **_: Any) -> BatchSampler:
        mined = self._mined
        if mined is None:
            raise ValueError("batch_sampler was read from a file; give the sampler of a TextBag anew.")
        numbered = len(dataset) == len(mined.dataset) and _LABEL in dataset.column_names
        if not numbered or not np.array_equal(dataset[_LABEL][:], np.arange(len(dataset))):  # to evaluate on
            if mined.holds(dataset):
                raise ValueError(
                    "These rows are of mined.dataset, but not it as it is, and its labels are numbers of rows; train "
                    "with all of it, in its order, and evaluate on rows of your own dataset."
                )
            return BatchSampler(SequentialSampler(dataset), batch_size, drop_last=False)
        if batch_size != mined.batch_size:
            raise ValueError(
                f"batch_size of the bag is {mined.batch_size}, the trainer's {batch_size}; give the bag the "
                "per_device_train_batch_size of the training arguments. With several GPUs start with torchrun."
            )
        if world_size() > 1 and any(getattr(part, "gather_across_devices", False) for part in mined.loss.modules()):
            raise ValueError(
                "loss has gather_across_devices=True; the batches of several processes may share rows and labels, "
                "which would be negatives of themselves; set it to False."
            )
        if world_size() > 1 and mined.bag.per_class > mined._fewest:  # accelerate wants batches of one length
            raise ValueError(
                f"label has a class of {mined._fewest} rows, and with several processes each needs "
                f"{mined.bag.per_class} or more; leave the small ones out, or train with one process."
            )
        return _Batches(mined)


class _WatchedLoss(nn.Module):
    """A loss whose labels are row numbers, and whose embeddings the bag learns from while training."""

    def __init__(self, loss: nn.Module, mined: TextBag) -> None:
        super().__init__()
        self.loss, self._mined = loss, mined
        self._encoder = (_encoder(loss),)  # a tuple, so that it is not a part of this module twice
        for part in loss.modules():
            if getattr(part, "guide", None) is self._encoder[0] and hasattr(part, "mini_batch_size"):
                raise ValueError(
                    f"loss has a {type(part).__name__} whose guide is the encoder itself, so that it cannot be told "
                    "which texts it embeds when; give its guide an encoder of its own."
                )

    @property
    def model(self) -> Any:
        """What the loss calls its model, which the trainer exchanges for a wrapped one."""
        return self.loss.model  # an AttributeError, where it has another name for it, tells the trainer so

    def forward(self, features: Any, labels: Tensor) -> Any:
        """The loss of a batch, whose ``labels`` ``(batch,)`` are row numbers."""
        (encoder,) = self._encoder
        if not encoder.training:
            return self.loss(features, labels)
        if labels is None:
            raise ValueError("The trainer's rows have no numbers; give it train_dataset=mined.dataset.")
        seen: list[Tensor] = []
        # At the last module, because some losses shorten what leaves the encoder itself.
        last = list(encoder.children())[-1]
        handle = last.register_forward_hook(lambda *given: seen.append(given[-1]["sentence_embedding"].detach()))
        try:
            value = self.loss(features, self._mined.labels_of(labels))
        finally:
            handle.remove()
        self._mined.learn(labels.cpu(), self._first(seen, len(labels)))
        return value

    def _first(self, seen: list[Tensor], rows: int) -> Tensor:
        """What was embedded, column after column, where that can be told.

        Raises:
            ValueError: if the columns that the bag needs are embedded in pieces and something else between them.
        """
        whole = all(len(part) == rows for part in seen[: self._mined.own_columns])
        if not whole and sum(map(len, seen)) > rows * len(self._mined.dataset.column_names[:-1]):
            raise ValueError(
                "The loss embeds more texts than the batch has, in pieces, so that it cannot be told which are whose; "
                "give its guide an encoder of its own."
            )
        return torch.cat(seen)


def _encoder(loss: nn.Module) -> SentenceTransformer:
    """The encoder inside a loss, under whatever name and wrapper."""
    for module in loss.modules():
        if isinstance(module, SentenceTransformer):
            return module
    raise ValueError(f"loss is {type(loss).__name__}, without an encoder; give a loss of sentence-transformers.")


def _warn_of_repeats(dataset: Dataset, texts: list[str], classes: NDArray[np.int64]) -> None:
    rows = zip(*(dataset[name] for name in texts), strict=True)
    named = {(text, c) for c, row in zip(classes.tolist(), rows, strict=True) for text in row}
    count = Counter(text for text, _ in named)  # of identities, whatever the column
    if repeated := sum(n > 1 for n in count.values()):
        warnings.warn(
            f"{repeated} texts stand in rows of several identities, so that they become each other's negatives; give "
            "one label to rows of one identity (label=…), and leave out what stands under several.",
            stacklevel=4,
        )
