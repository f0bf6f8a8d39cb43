"""Pages of HTML that stand alone, with their images inside: what the command line writes for people to look at."""

import base64
import html
import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from bonlib.datasets.labelled import LabelledSet

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_STYLE = (
    "body{font-family:sans-serif;margin:2rem;color-scheme:light dark}table{border-collapse:collapse}"
    "td,th{padding:.2rem .6rem;text-align:left}img{max-width:100%;image-rendering:pixelated;margin-right:.3rem}"
)


def page(title: str, body: str) -> bytes:
    """A page of its own."""
    text = f'<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
    content = f"{text}<style>{_STYLE}</style><h1>{html.escape(title)}</h1>{body}</html>"
    return content.encode(errors="replace")  # names of files may be in no encoding


def picture(figure: "Figure", kind: str = "png") -> bytes:
    """A figure as a file, png or svg."""
    content = io.BytesIO()
    figure.savefig(content, dpi=150, format=kind)
    return content.getvalue()


def image_tag(content: bytes, text: str) -> str:
    """A png inside a page, with what stands for it where it cannot be seen."""
    return f'<img alt="{html.escape(text)}" src="{data_uri(content)}">'


def data_uri(content: bytes) -> str:
    """A png as an address that holds it."""
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def lookalikes_page(dataset: LabelledSet, encoder: str, pairs: pd.DataFrame, samples: pd.DataFrame) -> bytes:
    """Both tables of :mod:`bonlib.lookalikes` as a page, with what their ratios mean."""
    body = (
        f"<p>{html.escape(repr(dataset))}, by the encoder {html.escape(encoder)}.</p>"
        "<h2>Identities that may be one</h2><p>A ratio of 1 is what two halves of one identity show.</p>"
        f"{_rows_of(pairs, dataset)}<h2>Samples that may be of another identity</h2>"
        "<p>The ratio is the distance to the rest of the own identity over that to the nearest other.</p>"
        f"{_rows_of(samples, dataset)}"
    )
    return page("Look-alikes", body)


def named(table: pd.DataFrame, dataset: LabelledSet) -> pd.DataFrame:
    """A table of :mod:`bonlib.lookalikes` with names for labels, and paths or strings beside the numbers of samples."""
    table = table.copy()
    texts = {"path": dataset.attributes.get("path"), "string": getattr(dataset, "strings", None)}
    texts["row"] = dataset.attributes.get("row")  # of the table that strings were read from, from 1
    for name in [name for name in table if name in ("first", "second", "label", "nearest")]:
        table[name] = [dataset.class_names[label] for label in table[name]]
    for name in [str(name) for name in table if str(name).endswith("sample")]:
        for text, values in texts.items():
            if values is not None:
                table[name.replace("sample", text)] = [str(values[i]) for i in table[name]]
    return table


def _rows_of(table: pd.DataFrame, dataset: LabelledSet) -> str:
    """A table of :mod:`bonlib.lookalikes` as HTML, with the images of each row where there are any."""
    ids = table[[name for name in table if str(name).endswith("sample")]].to_numpy(copy=True)
    shown = named(table, dataset).round(3)
    for name in shown.select_dtypes(exclude="number"):
        shown[name] = [html.escape(str(value)) for value in shown[name]]
    if not hasattr(dataset, "strings"):
        shown.insert(
            0,
            "images",
            ["".join(map(image_tag, map(png, dataset.pixels(row)), map("sample {}".format, row))) for row in ids],
        )
    return shown.to_html(index=False, escape=False, border=0)


def png(image: NDArray[Any]) -> bytes:
    """An image as :meth:`~bonlib.datasets.labelled.LabelledSet.pixels` gives it; one channel is dark where high."""
    image = np.asarray(image)
    colour = image.ndim == 3 and len(image) == 3
    content = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0) if colour else 255 - image.squeeze()).save(content, "png")
    return content.getvalue()
