"""What BoN costs, measured beside its peers in one run: milliseconds, bytes and ratios, as DataFrames."""

import contextlib
import itertools
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.multiprocessing.spawn import spawn

from bonlib.bag import BagOfNegatives
from bonlib.core.hashes import OnlineAutoencoder
from bonlib.core.kernels import read_codes
from bonlib.core.layout import FORMS
from bonlib.training.encoders import make_encoder
from bonlib.training.losses import make_loss
from bonlib.training.metrics import retrieval_metrics

_LARGER_THAN_CACHES = 2**29  # bytes
BATCH = {"set": 128, "triplet": 129, "pair": 128}


def milliseconds(
    actions: dict[str, Callable[[], Any]], repeats: int, device: str = "cpu", *, cold: bool = False
) -> dict[str, float]:
    """Median time of each action; they take turns, so that what else the machine does falls on all alike.

    Args:
        actions: what to time, by name; each is run once before, unmeasured.
        repeats: how often each is timed.
        device: waited for after each action, where it is ``"cuda"``.
        cold: empty the processor's caches before each action, as a training step in between does.
    """
    other = np.ones(_LARGER_THAN_CACHES // 8) if cold else None
    times: dict[str, list[float]] = {name: [] for name in actions}
    for repeat in range(repeats + 1):
        for name, action in actions.items():
            if other is not None:
                other += 1
            _wait(device)
            began = time.perf_counter()
            action()
            _wait(device)
            if repeat:
                times[name].append(1000 * (time.perf_counter() - began))
    return {name: float(np.median(values)) for name, values in times.items()}


METHODS: dict[str, Callable[..., BagOfNegatives]] = {
    "as published": BagOfNegatives.as_published,
    "two stages": BagOfNegatives,
}


def batch_costs(sizes: Iterable[int], *, per_class: int = 10, repeats: int = 300) -> pd.DataFrame:
    """Drawing a batch of 128 and correcting what is remembered of it, in a filled bag, against the number of samples.

    Args:
        sizes: numbers of samples.
        per_class: samples of each identity.
        repeats: timed draws.

    Returns:
        A row for each size, method and form: ``milliseconds`` of draw and correction together again and again, ``cold``
        the same with empty caches, as in a training where a step of the encoder lies between; ``bytes_per_sample`` of
        all that the bag holds, ``build_seconds`` of making it, ``fill_seconds`` of putting all entries in the table,
        ``extend_seconds`` of appending a thousand samples of new identities, up to ten million.
    """
    rows, rng = [], np.random.default_rng(0)
    for make in METHODS.values():  # compiles
        small, _ = filled(make, np.arange(1000) // per_class, 64, rng)
        _draw_and_correct(small, "set", *_told(small, rng))
    for count, (method, make) in itertools.product(sizes, METHODS.items()):
        bag, seconds = filled(make, np.arange(count) // per_class, 64, rng)
        costs = {"bytes_per_sample": bag.nbytes / count} | seconds
        actions = {form: partial(_draw_and_correct, bag, form, *_told(bag, rng)) for form in FORMS}
        warm, cold = milliseconds(actions, repeats), milliseconds(actions, max(repeats // 10, 10), cold=True)
        if count <= 10**7:  # for it holds the bag twice
            began = time.perf_counter()
            bag.extend((count + np.arange(1000)) // per_class)
            costs["extend_seconds"] = time.perf_counter() - began
        for form in actions:
            shape = {"samples": count, "identities": count // per_class, "method": method, "form": form}
            rows.append(shape | {"bits": bag.bits, "milliseconds": warm[form], "cold": cold[form]} | costs)
        del bag, actions  # before the next is made
    return pd.DataFrame(rows)


def filled(
    make: Callable[..., BagOfNegatives], labels: np.ndarray, dim: int, rng: np.random.Generator, **options: Any
) -> tuple[BagOfNegatives, dict[str, float]]:
    """A bag whose entries all have random codes and sketches, and the seconds of making it and of filling its table."""
    began, spent = time.perf_counter(), 0.0
    bag = make(labels, dim, seed=0, **options)
    built = time.perf_counter() - began
    for ids in np.array_split(rng.permutation(bag.num_entries), max(bag.num_entries // 1_000_000, 1)):
        codes, near = read_codes(rng.standard_normal((len(ids), bag.bits), dtype=np.float32))
        began = time.perf_counter()
        bag.table.move(ids, codes, near)
        spent += time.perf_counter() - began
    sketches = bag._means.sketches.rows
    for some in np.array_split(np.arange(len(sketches)), 1 + len(sketches) // 1_000_000):
        sketches[some] = rng.integers(-127, 128, (len(some), sketches.shape[1]), dtype=np.int8)
    bag._means._seen[:] = True
    return bag, {"build_seconds": built, "fill_seconds": spent}


def memory_parts(bag: BagOfNegatives) -> pd.Series:
    """Where the memory of a bag goes: bytes a sample by part, which add up to ``bag.nbytes``."""
    table, (of, *index) = bag.table, bag._classes
    parts = {
        "labels": of.nbytes,
        "class index": bag.classes.nbytes + sum(array.nbytes for array in index),
        "code": table._code.nbytes,
        "place in its bucket": table._place.nbytes,
        "members of buckets": table._pool.nbytes,
        "probing order": table._near.nbytes,
        "last correction": bag._corrected.nbytes,
        "sketches": bag._means.nbytes,
    }
    parts["other"] = bag.nbytes - sum(parts.values())
    return pd.Series({name: size / bag.num_samples for name, size in parts.items() if size})


def sampler_costs(identities: Iterable[int], *, per_class: int = 4, repeats: int = 20) -> pd.DataFrame:
    """A batch of 128 from BoN and from what people use today, against the number of identities.

    The peers: pytorch-metric-learning's ``MPerClassSampler``; the exact search of the nearest negatives of the batch in
    all the data (faiss, flat, 64 dimensions; up to a million samples); the same by an HNSW graph that gets the batch's
    new embeddings too (``M = 32``; up to 400,000 samples, for it takes minutes to build).

    Args:
        identities: numbers of identities.
        per_class: samples of each.
        repeats: timed batches.

    Returns:
        A row for each number and ``miner``: ``milliseconds`` a batch, and the ratio ``to_bon``.
    """
    import faiss
    from pytorch_metric_learning.samplers import MPerClassSampler

    rows = []
    for count in identities:
        labels = np.arange(count * per_class) // per_class
        rng = np.random.default_rng(0)
        bag, _ = filled(BagOfNegatives, labels, 64, rng)
        # The peer lays out all batches of a pass at once: eight of them are timed, and divided.
        peer = MPerClassSampler(labels.tolist(), m=4, batch_size=128, length_before_new_iter=8 * 128)
        actions: dict[str, Callable[[], Any]] = {
            "BoN": partial(_draw_and_correct, bag, "set", *_told(bag, rng)),
            "MPerClassSampler": partial(list, peer),
        }
        if len(labels) <= 1_000_000:
            faiss.omp_set_num_threads(1)
            index, batch = faiss.IndexFlatL2(64), rng.standard_normal((128, 64), dtype=np.float32)
            index.add(rng.standard_normal((len(labels), 64), dtype=np.float32))
            actions["exact search"] = partial(index.search, batch, 50)
        if len(labels) <= 400_000:
            graph = faiss.IndexHNSWFlat(64, 32)
            graph.add(rng.standard_normal((len(labels), 64), dtype=np.float32))
            actions["HNSW graph"] = lambda graph=graph, batch=batch: (graph.search(batch, 50), graph.add(batch))
        spent = milliseconds(actions, repeats)
        spent["MPerClassSampler"] /= 8
        for name, value in spent.items():
            rows.append({"identities": count, "miner": name, "milliseconds": value, "to_bon": value / spent["BoN"]})
    return pd.DataFrame(rows)


def hash_costs(
    dims: Iterable[int] = (64, 128, 256, 512), bits: Iterable[int] = (10, 16, 24), *, repeats: int = 200
) -> pd.DataFrame:
    """The hash's step (learn and encode a batch of 128) beside its floor: an Adam step of two bare linear layers.

    Returns:
        A row for each width and code length: ``milliseconds``, ``floor`` and their ratio ``to_floor``.
    """
    rows, bits = [], list(bits)
    for dim in dims:
        embeddings = nn.functional.normalize(torch.randn(128, dim), dim=1)
        for length in bits:
            hasher = OnlineAutoencoder(dim, length)
            actions = {
                "hash": lambda hasher=hasher, rows=embeddings: (hasher.partial_fit(rows), hasher.encode(rows)),
                "floor": partial(_bare_step(dim, length), embeddings),
            }
            spent = milliseconds(actions, repeats)
            shape = {"dim": dim, "bits": length, "device": "cpu", "milliseconds": spent["hash"]}
            rows.append(shape | {"floor": spent["floor"], "to_floor": spent["hash"] / spent["floor"]})
    return pd.DataFrame(rows)


def step_costs(
    encoders: Iterable[str] = ("small", "resnet50"), *, device: str = "cpu", repeats: int = 40, images: int = 50_000
) -> pd.DataFrame:
    """BoN's share of a training step: random sets and BoN sets of 128 with batch-hard loss, side by side.

    Args:
        encoders: ``"small"`` gets 32×32 grey images, others 256×128 in colour.
        device: where encoder and images are.
        repeats: timed steps; a tenth of them for large encoders on the CPU.
        images: samples of the data set, four an identity; the pixels of one batch stand for all.

    Returns:
        A row for each encoder and method: milliseconds of ``training`` (forward, loss, backward, optimiser), ``draw``,
        ``update``, BoN's ``share`` of their sum, ``steps_per_second``.
    """
    rows, labels = [], np.arange(images) // 4
    for name in encoders:
        small, dim = name == "small", 64 if name == "small" else 128
        pixels = torch.rand(128, *((1, 32, 32) if small else (3, 256, 128)), device=device)
        encoder = make_encoder(name, dim=dim, in_channels=pixels.shape[1]).to(device).train()
        actions = {"training": _training_step(encoder, pixels, torch.optim.Adam(encoder.parameters()))}
        embeddings = encoder(pixels).detach()
        for method, make in METHODS.items():
            bag, _ = filled(make, labels, dim, np.random.default_rng(0), steps=10**9)
            batches, drawn = iter(bag), {}
            actions[f"draw, {method}"] = lambda drawn=drawn, batches=batches: drawn.update(batch=next(batches))
            actions[f"update, {method}"] = lambda bag=bag, drawn=drawn, rows=embeddings: bag.update(
                drawn["batch"], rows
            )
        spent = milliseconds(actions, repeats if small or device != "cpu" else max(repeats // 10, 2), device)
        for method in METHODS:
            parts = {"training": spent["training"]} | {of: spent[f"{of}, {method}"] for of in ("draw", "update")}
            total = sum(parts.values())
            row = {"encoder": name, "method": method, "device": device, **parts, "share": 1 - parts["training"] / total}
            rows.append(row | {"steps_per_second": 1000 / total})
    return pd.DataFrame(rows)


def step_variants(*, repeats: int = 40) -> pd.DataFrame:
    """Ways to train the small encoder faster on the CPU, each alone, beside the step as it is.

    Returns:
        A row for each: ``milliseconds`` a step, ``speedup`` over the step as it is (above 1 is faster).
    """
    pixels, actions = torch.rand(128, 1, 32, 32), {}
    for name in ("as it is", "not channels last", "fused Adam", "bfloat16", "torch.compile", "compile + bfloat16"):
        torch.manual_seed(0)
        encoder = make_encoder().train()
        if name == "not channels last":
            encoder = encoder.to(memory_format=torch.contiguous_format)
        optimizer = torch.optim.Adam(encoder.parameters(), fused=True if name == "fused Adam" else None)
        called = torch.compile(encoder) if "compile" in name else encoder
        actions[name] = _training_step(called, pixels, optimizer, bfloat16="bfloat16" in name)
    for name in list(actions):  # compilation is not timed, and needs a C++ compiler
        try:
            actions[name]()
        except RuntimeError:
            del actions[name]
    spent = milliseconds(actions, repeats)
    rows = [
        {"variant": name, "milliseconds": value, "speedup": spent["as it is"] / value} for name, value in spent.items()
    ]
    return pd.DataFrame(rows)


def evaluation_costs(samples: int = 100_000, *, dim: int = 64, per_class: int = 10) -> pd.DataFrame:
    """All samples against all others, beside pytorch-metric-learning's ``AccuracyCalculator`` (faiss).

    Each runs in a process of its own, so that its peak of memory is its own.

    Returns:
        A row for each: ``seconds``, ``peak_gib`` beyond what the process held before, and ``recall@1``.
    """
    context = multiprocessing.get_context("spawn")
    rows = []
    for name in ("bonlib", "AccuracyCalculator"):
        with context.Pool(1) as pool:
            rows.append({"by": name, **pool.apply(_evaluate_alone, (name, samples, dim, per_class))})
    return pd.DataFrame(rows)


def wire_costs(processes: Iterable[int] = (2, 4), *, dim: int = 64, steps: int = 100) -> pd.DataFrame:
    """Bytes that an update puts on the wire, by the loopback's counter (Linux), beside the bytes of the batch.

    Returns:
        A row for each number of processes: ``bytes_per_step`` over all processes, ``bytes_of_batch`` (indices and
        embeddings once), their ``ratio``, and ``milliseconds`` of an update.
    """
    rows = []
    for count in processes:
        with contextlib.closing(multiprocessing.get_context("spawn").SimpleQueue()) as queue:
            spawn(_update_together, (count, dim, steps, queue), nprocs=count)
            sent, spent = queue.get()
        batch = BATCH["set"] * (4 * dim + 8)
        rows.append(
            {
                "processes": count,
                "bytes_per_step": sent,
                "bytes_of_batch": batch,
                "ratio": sent / batch,
                "milliseconds": spent,
            }
        )
    return pd.DataFrame(rows)


def _draw_and_correct(bag: BagOfNegatives, form: Any, codes: np.ndarray, rows: torch.Tensor) -> None:
    """Draw a batch, then give its entries these codes, and its identities these embeddings where they are kept."""
    bag.form, bag.batch_size = form, BATCH[form]
    entries = bag._draw_batch()[:128]
    if bag.pool:
        entries, _ = bag._means.learn(bag.class_of[entries], rows, 1.0)
    bag.table.move(entries, np.roll(codes, int(entries[0]))[: len(entries)])


def _told(bag: BagOfNegatives, rng: np.random.Generator) -> tuple[np.ndarray, torch.Tensor]:
    """Random codes and embeddings for a batch."""
    return rng.integers(0, 2**bag.bits, 128), torch.from_numpy(
        rng.standard_normal((128, bag.dim), dtype=np.float32)
    ) / 8


def _bare_step(dim: int, bits: int) -> Callable[[torch.Tensor], None]:
    model = nn.Sequential(nn.Linear(dim, bits, bias=False), nn.Linear(bits, dim))
    optimizer = torch.optim.Adam(model.parameters())

    def step(embeddings: torch.Tensor) -> None:
        optimizer.zero_grad()
        (model(embeddings) - embeddings).square().mean().backward()
        optimizer.step()

    return step


def _training_step(
    encoder: Any, pixels: torch.Tensor, optimizer: torch.optim.Optimizer, *, bfloat16: bool = False
) -> Callable[[], None]:
    loss, labels = make_loss("batch-hard", "set"), torch.arange(128, device=pixels.device) // 4

    def step() -> None:
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=bfloat16):
            embeddings = encoder(pixels)
        value, _ = loss(embeddings.float(), labels, None)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()

    return step


def _evaluate_alone(name: str, samples: int, dim: int, per_class: int) -> dict[str, float]:
    labels = torch.arange(samples) // per_class
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(int(labels.max()) + 1, dim, generator=generator)
    embeddings = nn.functional.normalize(centres[labels] + torch.randn(samples, dim, generator=generator), dim=1)
    calculate = partial(retrieval_metrics, embeddings, labels)
    if name != "bonlib":
        from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

        names = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
        calculator = AccuracyCalculator(include=names, k="max_bin_count", device=torch.device("cpu"))
        calculate = partial(calculator.get_accuracy, embeddings, labels)
    before, began = _resident_bytes(), time.perf_counter()
    found = calculate()
    seconds, peak = time.perf_counter() - began, _resident_bytes("VmHWM")
    recall = found.get("recall@1", found.get("precision_at_1"))
    return {"seconds": seconds, "peak_gib": (peak - before) / 2**30, "recall@1": float(recall)}


def _update_together(rank: int, processes: int, dim: int, steps: int, queue: Any) -> None:
    import torch.distributed as dist

    from bonlib.core.distributed import RankMiner

    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(29600 + processes)}
    dist.init_process_group("gloo", rank=rank, world_size=processes)
    miner = RankMiner(BagOfNegatives.as_published(np.arange(8000) // 8, dim, steps=steps + 1))
    before, began = 0, 0.0
    for step, indices in enumerate(miner):
        if step == 1:
            dist.barrier()
            before, began = _loopback_bytes(), time.perf_counter()
        miner.update(indices, torch.randn(len(indices), dim))
    dist.barrier()
    if rank == 0:
        queue.put(((_loopback_bytes() - before) / steps, 1000 * (time.perf_counter() - began) / steps))
    dist.destroy_process_group()


def _loopback_bytes() -> int:
    lines = Path("/proc/net/dev").read_text().splitlines()
    return next(int(line.split()[9]) for line in lines if line.strip().startswith("lo:"))


def _resident_bytes(which: str = "VmRSS") -> float:
    """Memory of this process as the system counts it, now or at its peak (``VmHWM``); NaN where it does not tell."""
    with contextlib.suppress(OSError, StopIteration):
        status = Path("/proc/self/status").read_text().splitlines()
        return 1024 * float(next(line for line in status if line.startswith(which)).split()[1])
    return float("nan")


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
