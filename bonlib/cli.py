"""The command line: ``bonlib study|train|evaluate|embed|neighbours|data|bench``."""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

INTERRUPTED, WRONG = 130, 2  # exit statuses


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
            from bonlib import study

            return study.main(given[1:])
        options.run(options)
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, OSError) as error:
        print(f"bonlib {options.command}: {error}", file=sys.stderr)
        return WRONG
    except ModuleNotFoundError as error:
        print(f"bonlib {options.command} needs {error.name}: pip install 'bonlib[study]'", file=sys.stderr)
        return WRONG
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bonlib", description="Hard negative mining from hash buckets.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    commands.add_parser("study", help="sweeps, notebooks and report (in a checkout)", add_help=False)

    train = _command(commands, "train", _train, "train an encoder, write its record and its weights")
    _data_arguments(train)
    train.add_argument("--miner", default="bag", help="bag, random, … (default: %(default)s)")
    train.add_argument("--form", default="set", choices=("set", "triplet", "pair"))
    train.add_argument("--loss", default="", help="by default the usual one of the form")
    train.add_argument("--encoder", default="small", help="small, or a backbone of torchvision such as resnet50")
    train.add_argument("--steps", type=int, default=1000, help="(default: %(default)s)")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--device", default="cpu", help="cpu or cuda")
    train.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="settings",
                       help="any other setting of a run, value as JSON, such as lr=0.0005")  # fmt: skip
    train.add_argument("--output", type=Path, default=Path("encoder.pt"), help="weights (default: %(default)s)")
    train.add_argument("--sweep", default="scratch", help="folder of the record (default: %(default)s)")

    evaluate = _command(commands, "evaluate", _evaluate, "measure a trained encoder: R@1, MAP@R, or CMC and mAP")
    _data_arguments(evaluate, encoder=True)

    embed = _command(commands, "embed", _embed, "write embeddings and labels")
    _data_arguments(embed, encoder=True)
    embed.add_argument("--output", type=Path, default=Path("embeddings.npy"), help=".npy (labels beside) or .parquet")

    neighbours = _command(commands, "neighbours", _neighbours, "draw nearest images, wrong ones crossed out")
    _data_arguments(neighbours, encoder=True)
    neighbours.add_argument("--queries", type=int, default=8, help="rows (default: %(default)s)")
    neighbours.add_argument("--k", type=int, default=10, help="images in a row (default: %(default)s)")
    neighbours.add_argument("--seed", type=int, default=0)
    neighbours.add_argument("--output", type=Path, default=Path("neighbours.png"), help=".png, .svg or .html")

    _command(commands, "data", _data, "list the data sets, and which are here")

    bench = _command(commands, "bench", _bench, "measure what BoN costs on this machine, a minute")
    bench.add_argument("--largest", type=int, default=1_000_000, help="most samples (default: %(default)s)")
    bench.add_argument("--device", default="cpu", help="cpu or cuda")
    return parser


def _command(commands: Any, name: str, run: Callable[..., None], text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(run=run)
    return parser


def _data_arguments(parser: argparse.ArgumentParser, *, encoder: bool = False) -> None:
    if encoder:
        parser.add_argument("weights", type=Path, help="file that `bonlib train` wrote")
        parser.add_argument("--split", default="test", choices=("train", "validation", "test"))
        parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dataset", default="glyphs", help="a name of `bonlib data` (default: %(default)s)")
    parser.add_argument("--root", help="where its files are")


def _train(options: argparse.Namespace) -> None:
    from tqdm.auto import tqdm

    from bonlib.encoders import save_encoder
    from bonlib.experiment import Config, Experiment, checkpoint_path

    known = {field.name for field in fields(Config)}
    chosen = {name: getattr(options, name) for name in ("dataset", "miner", "form", "loss", "encoder", "steps", "seed")}
    chosen |= {"device": options.device, "dataset_options": {"root": options.root} if options.root else {}}
    for setting in options.settings:
        name, _, value = setting.partition("=")
        if name not in known:
            raise ValueError(f"--set {setting}: no setting is called {name!r}; allowed are {', '.join(sorted(known))}.")
        try:
            chosen[name] = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"--set {setting}: {value!r} is no JSON; quote text as '{name}=\"text\"'.") from error
    config = Config(**chosen)
    checkpoint = checkpoint_path(config, options.sweep)
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
    made = {"name": config.encoder, "dim": config.dim, "in_channels": experiment.train.channels}
    made |= {name: value for name, value in config.encoder_options.items() if name != "weights"}
    images = {name: value for name, value in config.dataset_options.items() if name != "root"}
    save_encoder(options.output, experiment.encoder, images=images, **made)
    record = experiment.save(options.sweep)
    print(f"weights: {options.output}\nrecord:  {record}")
    _print_metrics(json.loads(record.read_text())["metrics"])


def _loaded(options: argparse.Namespace) -> tuple[Any, Any]:
    from bonlib.datasets import load_dataset
    from bonlib.encoders import load_encoder

    encoder, images = load_encoder(options.weights, device=options.device)
    source = {"root": options.root} if options.root else {}
    return encoder, load_dataset(options.dataset, options.split, **images, **source)


def _evaluate(options: argparse.Namespace) -> None:
    from bonlib.evaluation import evaluate

    encoder, dataset = _loaded(options)
    print(dataset)
    _print_metrics(evaluate(encoder, dataset, device=options.device))


def _embed(options: argparse.Namespace) -> None:
    import numpy as np

    from bonlib.evaluation import embed
    from bonlib.paths import write_atomically

    if options.output.suffix not in (".npy", ".parquet"):
        raise ValueError(f"--output is {options.output}; allowed are names that end in .npy or .parquet.")
    encoder, dataset = _loaded(options)
    found, labels = embed(encoder, dataset, device=options.device)
    embeddings, names = found.cpu().numpy(), [dataset.class_names[label] for label in labels.tolist()]
    if options.output.suffix == ".npy":
        beside = options.output.with_suffix(".labels.npy")
        write_atomically(options.output, lambda path: np.save(path, embeddings))
        write_atomically(beside, lambda path: np.save(path, labels.numpy()))
        print(f"embeddings {embeddings.shape}: {options.output}\nlabels: {beside}")
        return
    import pandas as pd

    table = pd.DataFrame(embeddings, columns=[f"e{i}" for i in range(embeddings.shape[1])])
    table.insert(0, "label", labels.numpy())
    table.insert(1, "class_name", names)
    write_atomically(options.output, lambda path: table.to_parquet(path))
    print(f"embeddings {embeddings.shape}, label and class_name: {options.output}")


def _neighbours(options: argparse.Namespace) -> None:
    import base64

    import numpy as np
    from matplotlib import pyplot as plt

    from bonlib.analysis import nearest_images
    from bonlib.evaluation import embed
    from bonlib.paths import write_atomically
    from bonlib.plots import retrievals

    if options.output.suffix not in (".png", ".svg", ".html"):
        raise ValueError(f"--output is {options.output}; allowed are names that end in .png, .svg or .html.")
    encoder, dataset = _loaded(options)
    embeddings, labels = embed(encoder, dataset, device=options.device)
    queries = np.random.default_rng(options.seed).permutation(len(dataset))[: options.queries]
    found = nearest_images(embeddings.cpu(), queries, k=options.k)
    right = (labels[found] == labels[queries][:, None]).numpy()
    names = [dataset.class_names[label] for label in labels[queries].tolist()]
    figure = retrievals(dataset.pixels(queries), [dataset.pixels(ids) for ids in found], right, names)
    picture = options.output.with_suffix(".png") if options.output.suffix == ".html" else options.output
    write_atomically(picture, lambda path: figure.savefig(path, dpi=150))
    plt.close(figure)
    if options.output.suffix == ".html":
        coded, share = base64.b64encode(picture.read_bytes()).decode(), right.mean()
        picture.unlink()
        text = f"{len(queries)} images and the {options.k} nearest to each, {share:.0%} right; wrong ones crossed out"
        page = (
            f'<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>Nearest images</title><p>{text}</p>'
            f'<img style="max-width:100%" alt="{text}" src="data:image/png;base64,{coded}"></html>'
        )
        write_atomically(options.output, lambda path: path.write_text(page, encoding="utf-8"))
    print(f"nearest images: {options.output}")


def _data(options: argparse.Namespace) -> None:
    import pandas as pd

    from bonlib.datasets import list_datasets

    with pd.option_context("display.width", 200, "display.max_colwidth", 60, "display.max_columns", 20):
        print(list_datasets())


def _bench(options: argparse.Namespace) -> None:
    from tqdm.auto import tqdm

    from bonlib import costs

    sizes = [10**k for k in range(4, 10) if 10**k <= options.largest]
    if not sizes:
        raise ValueError(f"--largest is {options.largest}; give at least 10000.")
    measured = {
        "a batch of 128, drawn and moved in the table": lambda: costs.batch_costs(sizes, repeats=100),
        "the hash's step beside its floor": lambda: costs.hash_costs((64, 512), (10, 24), device=options.device),
        "BoN's share of a training step": lambda: costs.step_costs(["small"], device=options.device, repeats=20),
    }
    for title, measure in tqdm(measured.items()):
        tqdm.write(f"\n{title}\n{measure().round(4).to_string(index=False)}")


def _print_metrics(metrics: dict[str, float]) -> None:
    for name, value in metrics.items():
        print(f"  {name:14} {value:.4f}")


if __name__ == "__main__":
    sys.exit(main())
