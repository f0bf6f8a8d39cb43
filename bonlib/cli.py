"""The command line: ``bonlib study|train|evaluate|embed|neighbours|lookalikes|data``."""

import argparse
import json
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

INTERRUPTED, WRONG, FAILED = 130, 2, 1  # exit statuses


def main(arguments: list[str] | None = None) -> int:
    """Run a command.

    Returns:
        0 where all went well, 1 where something failed, 2 for wrong arguments or input, 130 after Ctrl-C.
    """
    given = sys.argv[1:] if arguments is None else arguments
    # The study has options of its own, and its own --help.
    options = argparse.Namespace(command="study") if given[:1] == ["study"] else _parser().parse_args(given)
    try:
        if options.command == "study":
            from bonlib.study import sweeps

            return sweeps.main(given[1:])
        from bonlib.study.memory import keep_freed_memory

        keep_freed_memory()
        with _left_out_told_once(options.command):
            options.run(options)
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return INTERRUPTED
    except RuntimeError as error:  # of torch: memory, or images that the encoder does not take
        print(f"bonlib {options.command} failed: {str(error).strip().splitlines()[0]}", file=sys.stderr)
        return FAILED
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"bonlib {options.command}: {_with_cure(error)}", file=sys.stderr)
        return WRONG
    except ImportError as error:
        cure = "" if "pip install" in str(error) else f" needs {error.name}: pip install 'bonlib[study]'"
        print(f"bonlib {options.command}{cure or f': {error}'}", file=sys.stderr)
        return WRONG
    return 0


@contextmanager
def _left_out_told_once(command: str) -> Iterator[None]:
    """What is left out of the data, in one line, although each split of them says so."""
    from bonlib.datasets.tables import LeftOut

    with warnings.catch_warnings():
        usual, told = warnings.showwarning, set[str]()

        def show(message: Any, category: type[Warning], *where: Any) -> None:
            if not issubclass(category, LeftOut):
                usual(message, category, *where)
            elif str(message) not in told:
                told.add(str(message))
                print(f"bonlib {command}: {message}", file=sys.stderr)

        warnings.simplefilter("always", LeftOut)
        warnings.showwarning = show
        yield


def _with_cure(error: Exception) -> str:
    """What the error says, in the words of the command line."""
    return (
        str(error).replace("give on_error='skip'", "give --skip-broken").replace("check_counts=False", "--any-counts")
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bonlib", description="Hard negative mining from hash buckets.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    commands.add_parser("study", help="sweeps, notebooks and docs (in a checkout)", add_help=False)

    train = _command(commands, "train", _train, "train an encoder, write its record and its weights")
    _data_arguments(train)
    train.add_argument(
        "--miner",
        default="two-stage-bag",
        help="one of bonlib.list_miners(): two-stage-bag, bag (as published), random, … (default: %(default)s)",
    )
    train.add_argument("--form", default="set", choices=("set", "triplet", "pair"),
                       help="of the batches (default: %(default)s)")  # fmt: skip
    train.add_argument(
        "--loss", default="", help="batch-hard, multi-similarity, infonce, …; by default the usual one of the form"
    )
    train.add_argument("--encoder", default="", help="small, ngrams for strings (the defaults), or a backbone of "
                       "torchvision such as resnet50")  # fmt: skip
    train.add_argument("--steps", type=_at_least(1), default=1000, help="(default: %(default)s)")
    train.add_argument("--seed", type=_at_least(0), default=0, help="of weights and batches (default: %(default)s)")
    train.add_argument("--device", default="cpu", help="cpu or cuda")
    train.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="settings",
                       help="a setting of the run, a word or JSON, such as lr=0.0005 (docs: Reference)")  # fmt: skip
    train.add_argument("--output", type=Path, default=Path("encoder.pt"), help="weights (default: %(default)s)")
    train.add_argument("--sweep", default="scratch", help="folder of the record (default: %(default)s)")

    evaluate = _command(commands, "evaluate", _evaluate, "measure a trained encoder: R@1, MAP@R, or CMC and mAP")
    _data_arguments(evaluate, encoder=True)

    embed = _command(commands, "embed", _embed, "write embeddings, labels, and paths or strings")
    _data_arguments(embed, encoder=True)
    embed.add_argument("--output", type=Path, default=Path("embeddings.npy"),
                       help=".parquet, or .npy with a table of its rows beside it")  # fmt: skip

    neighbours = _command(commands, "neighbours", _neighbours, "plot nearest images, wrong ones crossed out")
    _data_arguments(neighbours, encoder=True)
    neighbours.add_argument("--queries", type=_at_least(1), default=8, help="rows (default: %(default)s)")
    neighbours.add_argument("--k", type=_at_least(1), default=10, help="images in a row (default: %(default)s)")
    neighbours.add_argument("--seed", type=_at_least(0), default=0, help="of the choice (default: %(default)s)")
    neighbours.add_argument("--output", type=Path, default=Path("neighbours.png"), help=".png, .svg or .html")

    lookalikes = _command(commands, "lookalikes", _lookalikes, "list identities that may be one, and samples that may "
                          "be another's")  # fmt: skip
    _data_arguments(lookalikes, encoder=True)
    lookalikes.set_defaults(split="all")
    lookalikes.add_argument("--top", type=_at_least(1), default=100, help="rows of a list (default: %(default)s)")
    lookalikes.add_argument("--output", type=Path, default=Path("lookalikes.html"),
                            help=".html, or .csv for the pairs with a file for the samples beside it")  # fmt: skip

    _command(commands, "data", _data, "list the data sets, and which are here")
    return parser


def _at_least(least: int) -> Callable[[str], int]:
    """A type of argparse: a whole number from ``least`` on."""

    def number(text: str) -> int:
        if not text.lstrip("-").isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not allowed; give a whole number, at least {least}")
        return int(text)

    return number


def _command(commands: Any, name: str, run: Callable[..., None], text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(run=run)
    return parser


def _data_arguments(parser: argparse.ArgumentParser, *, encoder: bool = False) -> None:
    if encoder:
        parser.add_argument("weights", type=Path, help="file that `bonlib train` wrote")
        splits = ("train", "validation", "test", "all")
        parser.add_argument("--split", default="test", choices=splits, help="of the data; test, of lookalikes all")
        parser.add_argument("--device", default="cpu", help="cpu or cuda")
    usual = "that of the weights" if encoder else "glyphs"
    parser.add_argument("--dataset", default=None if encoder else usual, help=f"a name of `bonlib data` ({usual})")
    parser.add_argument("--root", help="where its files are")
    parser.add_argument("--column", help="of a table that holds strings: the column with them")
    parser.add_argument("--identity", help="of such a table: the column with the identities (identity)")
    parser.add_argument("--skip-broken", action="store_true", help="leave out broken images and empty strings")
    parser.add_argument("--any-counts", action="store_true", help="take a benchmark that is not as large as published")


def _source(options: argparse.Namespace) -> dict[str, Any]:
    """What the arguments say of the data set, as its options."""
    source = {"root": options.root} if options.root else {}
    source |= {name: value for name in ("column", "identity") if (value := getattr(options, name))}
    source |= {"on_error": "skip"} if options.skip_broken else {}
    return source | ({"check_counts": False} if options.any_counts else {})


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """All settings of a run, those of ``--set`` over the others; dictionaries are merged.

    Raises:
        ValueError: if a value is neither JSON nor a word.
    """
    chosen = {name: getattr(options, name) for name in ("dataset", "miner", "form", "loss", "encoder", "steps", "seed")}
    chosen |= {"device": options.device, "dataset_options": _source(options)}
    for setting in options.settings:
        name, _, value = setting.partition("=")
        try:
            given = json.loads(value)
        except json.JSONDecodeError as error:
            if not re.fullmatch(r"[A-Za-z][\w.-]*", value):
                cure = "in it text has double quotes" if value[:1] in "{[" else f"quote text, '{name}=\"{value}\"'"
                raise ValueError(f"--set {setting}: {value!r} is no JSON; {cure}.") from error
            given = value  # a word, such as cosine
        both = isinstance(given, dict) and isinstance(chosen.get(name), dict)
        chosen[name] = chosen[name] | given if both else given
    return chosen


def _train(options: argparse.Namespace) -> None:
    from tqdm.auto import tqdm

    from bonlib.core.paths import check_writable
    from bonlib.datasets import image_options
    from bonlib.study.config import make_config
    from bonlib.study.experiment import Experiment, checkpoint_path
    from bonlib.training.encoders import save_encoder

    config = make_config(_settings(options))
    check_writable(options.output, config.dataset_options.get("root"), str(config.start or ""))
    checkpoint = checkpoint_path(config, options.sweep)
    check_writable(checkpoint)
    experiment = Experiment(config, checkpoint)
    try:
        with tqdm(total=config.steps, desc=f"{config.miner} {config.form}s", unit="step") as bar:
            for step in experiment:
                bar.update(step.step - bar.n)
                if step.metrics is not None:
                    bar.set_postfix({name: f"{step.metrics[name]:.3f}" for name in list(step.metrics)[:1]})
    except KeyboardInterrupt:
        if checkpoint.exists():
            print(f"\nThe checkpoint {checkpoint} is kept; the same command goes on from it.", file=sys.stderr)
        raise
    images = image_options(config.dataset, config.dataset_options) | config.dataset_options
    images |= {"split_seed": config.seed} if config.own_split else {}  # else it would be measured on what it learned
    save_encoder(
        options.output, experiment.encoder,
        dataset=config.dataset, images={name: images[name] for name in images.keys() - {"root", "check_counts"}},
        learned=experiment.train.class_names, begun=experiment.begun, **experiment.made,
    )  # fmt: skip
    print(f"weights: {options.output}")
    try:
        record = experiment.save(options.sweep)
    except OSError as error:  # a file that broke since, or that is decoded only now
        raise ValueError(
            f"{error} The weights {options.output} are whole, the record is not written; mend the data, then "
            f"`bonlib evaluate {options.output}` measures them."
        ) from error
    print(f"record:  {record}")
    _print_metrics(json.loads(record.read_text())["metrics"])


def _loaded(options: argparse.Namespace, **more: Any) -> tuple[Any, Any]:
    """The encoder, and the data set that it is asked about; ``more`` are options, where the data set has them."""
    from bonlib.datasets import load_dataset, options_of
    from bonlib.training.encoders import check_takes, dataset_of, load_encoder, seen_identities

    encoder, images = load_encoder(options.weights, device=options.device)
    name = options.dataset or dataset_of(options.weights) or "glyphs"
    takes = options_of(name, text=bool(options.column or "column" in images))
    if dropped := sorted(name for name in set(images) - takes if images[name] not in (None, True)):  # usual ones
        print(f"{name} has no {', '.join(dropped)}, with which the encoder was trained.", file=sys.stderr)
    takes -= {"validation"} if options.split in ("test", "all") else set()  # a share of what is for training
    chosen = {name: value for name, value in (images | more).items() if name in takes}
    dataset = load_dataset(name, options.split, **chosen | _source(options))
    check_takes(encoder.cpu(), dataset[0][0].cpu(), str(options.weights))
    seen = seen_identities(options.weights, dataset.class_names) if options.split in ("validation", "test") else []
    if seen:
        print(
            f"{len(seen)} of the {dataset.num_classes} identities, such as {seen[0]!r}, bear names of identities that "
            "the encoder was trained on: the data have changed, and their split with them. A table whose column split "
            "says what is for training keeps it.",
            file=sys.stderr,
        )
    return encoder.to(options.device), dataset


def _evaluate(options: argparse.Namespace) -> None:
    from bonlib.training.encoders import seen_identities
    from bonlib.training.metrics import evaluate

    encoder, dataset = _loaded(options)
    if options.split in ("train", "all") and (seen := seen_identities(options.weights, dataset.class_names)):
        text = f"The encoder learned from {len(seen)} of the {dataset.num_classes} identities; on new ones it is worse."
        print(text, file=sys.stderr)
    print(f"{options.split}: {dataset}")
    _print_metrics(evaluate(encoder, dataset, device=options.device))


def _embed(options: argparse.Namespace) -> None:
    import pandas as pd

    from bonlib.core.checks import needs_extra
    from bonlib.core.paths import check_writable, write_atomically
    from bonlib.training.embed import embed

    kind = options.output.suffix.lower()
    if kind not in (".npy", ".parquet"):
        raise ValueError(f"--output is {options.output}; allowed are names that end in .npy or .parquet.")
    if kind == ".parquet":
        with needs_extra("--output *.parquet"):
            import pyarrow  # noqa: F401
    check_writable(options.output, options.root, options.weights)
    beside = _beside(options, "rows", "row,label,class_name") if kind == ".npy" else options.output
    encoder, dataset = _loaded(options, keep_shared=True)
    found, labels = embed(encoder, dataset, device=options.device)
    print(f"{options.split}: {dataset}" + ("" if options.split == "all" else "; --split all takes all"))
    embeddings = found.cpu().numpy()
    rows = pd.DataFrame({"label": labels.numpy(), "class_name": [dataset.class_names[i] for i in labels.tolist()]})
    if "path" in dataset.attributes:
        rows["path"] = dataset.attributes["path"]
    if hasattr(dataset, "strings"):
        rows["string"] = dataset.strings
    if "row" in dataset.attributes:  # of the table that it was read from
        rows["data row"] = dataset.attributes["row"]
    if kind == ".npy":
        write_atomically(options.output, lambda path: _save_array(path, embeddings))
        write_atomically(beside, lambda path: rows.to_csv(path, index_label="row"))
        print(f"embeddings {embeddings.shape}: {options.output}\n{', '.join(rows.columns)} of each row: {beside}")
        return
    table = pd.concat([rows, pd.DataFrame(embeddings).rename(columns="e{}".format)], axis=1)
    write_atomically(options.output, lambda path: table.to_parquet(path))
    print(f"embeddings {embeddings.shape}, {', '.join(rows.columns)}: {options.output}")


def _beside(options: argparse.Namespace, name: str, begins: str) -> Path:
    """A table beside an output, which may be there from an earlier time.

    Raises:
        ValueError: if there is a file of that name that begins with something else.
    """
    from bonlib.core.paths import check_writable

    beside = options.output.with_name(f"{options.output.stem}.{name}.csv")
    if beside.exists() and not beside.read_text(errors="replace").startswith(begins):
        raise ValueError(f"{beside} is there, and not of this command; move it, or give another --output.")
    check_writable(beside, options.root, options.weights)
    return beside


def _save_array(path: Path, array: Any) -> None:
    import numpy as np

    with path.open("wb") as opened:  # by its name NumPy would add another suffix to .NPY
        np.save(opened, array)


def _neighbours(options: argparse.Namespace) -> None:
    import numpy as np
    from matplotlib import pyplot as plt

    from bonlib.core.paths import check_writable, write_atomically
    from bonlib.study.analysis import nearest_images
    from bonlib.study.figures import retrievals
    from bonlib.study.sheet import image_tag, page, picture
    from bonlib.training.embed import embed

    kind = options.output.suffix.lower().removeprefix(".")
    if kind not in ("png", "svg", "html"):
        raise ValueError(f"--output is {options.output}; allowed are names that end in .png, .svg or .html.")
    check_writable(options.output, options.root, options.weights)
    encoder, dataset = _loaded(options)
    embeddings, labels = embed(encoder, dataset, device=options.device)
    queries = np.random.default_rng(options.seed).permutation(len(dataset))[: options.queries]
    found = nearest_images(embeddings.cpu(), queries, k=options.k)
    right = (labels[found] == labels[queries][:, None]).numpy()
    names = [dataset.class_names[label] for label in labels[queries].tolist()]
    figure = retrievals(dataset.pixels(queries), [dataset.pixels(ids) for ids in found], right, names)
    text = f"{len(queries)} images and the {found.shape[1]} nearest to each, {right.mean():.0%} right"
    content = picture(figure, "svg" if kind == "svg" else "png")
    if kind == "html":
        content = page("Nearest images", f"<p>{text}; wrong ones are crossed out.</p>{image_tag(content, text)}")
    plt.close(figure)
    write_atomically(options.output, lambda path: path.write_bytes(content))
    print(f"nearest images: {options.output}")


def _lookalikes(options: argparse.Namespace) -> None:
    from bonlib.bag import BagOfNegatives
    from bonlib.core.paths import check_writable, write_atomically
    from bonlib.lookalikes import lookalikes, misfits
    from bonlib.study.sheet import lookalikes_page, named
    from bonlib.training.embed import embed

    kind = options.output.suffix.lower()
    if kind not in (".html", ".csv"):
        raise ValueError(f"--output is {options.output}; allowed are names that end in .html or .csv.")
    check_writable(options.output, options.root, options.weights)
    beside = _beside(options, "samples", "ratio,sample,label") if kind == ".csv" else options.output
    encoder, dataset = _loaded(options, keep_shared=True)  # identities that share a name may well be one
    found = embed(encoder, dataset, device=options.device)[0].cpu()
    bag = BagOfNegatives(dataset.labels, found.shape[1], form="triplet", batch_size=3)
    bag.fill(lambda ids: found[ids])
    pairs, samples = lookalikes(bag, found, top=options.top), misfits(bag, found, top=options.top)
    if kind == ".csv":
        write_atomically(options.output, lambda path: named(pairs, dataset).to_csv(path, index=False))
        write_atomically(beside, lambda path: named(samples, dataset).to_csv(path, index=False))
        print(f"pairs of identities: {options.output}\nsamples: {beside}")
        return
    content = lookalikes_page(dataset, str(options.weights), pairs, samples)
    write_atomically(options.output, lambda path: path.write_bytes(content))
    print(f"look-alikes: {options.output}")


def _data(options: argparse.Namespace) -> None:
    import pandas as pd

    from bonlib.datasets import list_datasets

    with pd.option_context("display.width", 200, "display.max_colwidth", 60, "display.max_columns", 20):
        print(list_datasets())


def _print_metrics(metrics: dict[str, float]) -> None:
    for name, value in metrics.items():
        print(f"  {name:14} {value:.4f}")
