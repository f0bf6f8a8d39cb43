"""Executed notebooks to an offline site: pages with navigation, an index with thumbnails, the API reference beside."""

import base64
import html
import io
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bonlib.core.paths import write_atomically

# nbconvert's own page without the scripts that it would load from a network, and with our frame around it.
_PAGE = """{% extends 'lab/index.html.j2' %}
{% block html_head_js_requirejs %}{% endblock %}
{% block html_head_js_mathjax %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}
{% block jupyter_widgets %}{% endblock %}
{% block extra_css %}<link rel="stylesheet" href="report.css">{% endblock %}
{% block body_header %}
<body class="jp-Notebook" data-jp-theme-light="true" data-jp-theme-name="JupyterLab Light">
{{ resources.navigation }}<main>
{% endblock %}
{% block body_footer %}</main>{{ resources.navigation }}</body>{% endblock %}
"""
_CSS = """
:root { color-scheme: light; }
body { font: 17px/1.55 system-ui, sans-serif; background: #fff; color: #222; margin: 0 auto; max-width: 62rem; }
body.index { max-width: 52rem; padding: 1rem; }
main { display: block; min-width: 0; }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; padding: .7rem 1rem; border-bottom: 1px solid #bbb; }
main + nav { border-top: 1px solid #bbb; border-bottom: 0; }
a, nav a, .jp-RenderedHTMLCommon a { color: #005a8c !important; text-decoration: underline !important; }
img, svg { max-width: 100%; height: auto; }
.jp-RenderedHTMLCommon { font-size: 1rem; }
.jp-Cell pre, .jp-RenderedHTMLCommon table, .jp-OutputArea-output { overflow-x: auto; max-width: 100%; }
math[display=block] { overflow-x: auto; padding: .4rem 0; }
.card { display: flex; gap: 1rem; margin: 1.4rem 0; align-items: flex-start; }
.card img { width: 12rem; border: 1px solid #ccc; border-radius: 4px; }
.card h2 { font-size: 1.1rem; margin: 0; } .card p { margin: .3rem 0; }
@media (max-width: 42rem) {
  body { font-size: 16px; }
  .jp-InputPrompt, .jp-OutputPrompt { display: none !important; }
  .card { flex-direction: column; gap: .4rem; } .card img { width: 100%; }
}
"""
_INDEX = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>bonlib: the study</title>
<link rel="stylesheet" href="report.css">
</head>
<body class="index">
<h1>Bag of Negatives: the study</h1>
<p>Hard negative mining for deep metric learning at very large numbers of identities. Each page is an executed
notebook. {reference}</p>
{entries}
</body>
</html>
"""
_THUMBNAIL = 480  # pixels wide


def write_report(executed: Path, report: Path, *, reference: bool = False) -> Path:
    """Convert the executed notebooks in a folder to a site that needs no network.

    Args:
        executed: folder of executed notebooks.
        report: folder for the pages; pages of notebooks that are gone are removed.
        reference: whether to write the API reference, from the docstrings, into ``api/`` too.

    Returns:
        The index page.
    """
    import nbformat
    from jinja2 import DictLoader
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(extra_loaders=[DictLoader({"page.html.j2": _PAGE})], template_file="page.html.j2")
    report.mkdir(parents=True, exist_ok=True)
    for stale in report.glob("*.html"):
        stale.unlink()
    write_atomically(report / "report.css", lambda file: file.write_text(_CSS, encoding="utf-8"))
    paths, entries = sorted(executed.glob("*.ipynb")), []
    for i, path in enumerate(paths):
        notebook = nbformat.read(path, as_version=4)
        title, answer = _title_and_answer(notebook.cells[0].source)
        cells = [_readable(cell) for cell in notebook.cells]
        notebook.metadata["title"] = title
        around = {"previous": paths[i - 1] if i else None, "next": paths[i + 1] if i + 1 < len(paths) else None}
        resources = {"metadata": {"name": path.stem}, "navigation": _navigation(around, reference)}
        page, _ = exporter.from_notebook_node(notebook, resources=resources)
        page = re.sub(r'href="(\d\d_\w+)\.ipynb"', r'href="\1.html"', page)
        page = _with_alternatives(page, cells)
        write_atomically(report / f"{path.stem}.html", lambda file, page=page: file.write_text(page, encoding="utf-8"))
        entries.append(_card(path.stem, title, answer, _thumbnail(notebook)))
    text = (
        '<a href="api/bonlib.html">The reference of the package</a> is made from its docstrings.' if reference else ""
    )
    index = report / "index.html"
    page = _INDEX.format(entries="\n".join(entries), reference=text)
    write_atomically(index, lambda file: file.write_text(page, encoding="utf-8"))
    if reference:
        _write_reference(report / "api")
    return index


def _write_reference(folder: Path) -> None:
    """The API reference by pdoc, in place of what was there."""
    package = Path(__file__).parent
    files = (path.relative_to(package.parent).with_suffix("").parts for path in sorted(package.rglob("*.py")))
    modules = [".".join(parts).removesuffix(".__init__") for parts in files]
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-m", "pdoc", "--docformat", "google", "--output-directory", temporary, *modules]
        subprocess.run(command, check=True, capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        shutil.copytree(temporary, folder, dirs_exist_ok=True)
        folder.chmod(0o755)  # the temporary one is closed to others


def _readable(cell: Any) -> tuple[str, int]:
    """Prepare a cell for a page without scripts; returns the words that describe its pictures, and their number."""
    if cell.cell_type == "markdown":
        cell.source = _typeset(cell.source)
        return cell.source, 0
    if cell.cell_type == "code":
        for output in cell.outputs:  # a widget needs a running notebook; the figure after it shows the same
            if "application/vnd.jupyter.widget-view+json" in output.get("data", {}):
                output["data"] = {
                    "text/html": "<p><em>Interactive in a running notebook; see the figure below.</em></p>"
                }
        return "", sum("image/png" in output.get("data", {}) for output in cell.outputs)
    return "", 0


def _typeset(source: str) -> str:
    r"""LaTeX between dollars to MathML, which browsers show without scripts; code is left alone.

    Example:
        >>> _typeset("so $a_1$, and `$HOME`").count("<math")
        1
    """
    from latex2mathml.converter import convert

    def formula(found: re.Match[str]) -> str:
        if found["code"] is not None:
            return found["code"]
        display = found["block"] is not None
        tree = convert(found["block"] if display else found["inline"], display="block" if display else "inline")
        return " ".join(tree.split())

    pattern = r"(?P<code>```.*?```|`[^`\n]*`)|\$\$(?P<block>.+?)\$\$|\$(?P<inline>[^$\n]+?)\$"
    return re.sub(pattern, formula, source, flags=re.DOTALL)


def _with_alternatives(page: str, cells: list[tuple[str, int]]) -> str:
    """Give each picture of a page the text that stands before it, for those who cannot see it."""
    texts, heading = [], "Figure"
    for source, pictures in cells:
        if source:
            heading = _plain(source)[:300] or heading
        texts += [html.escape(f"Figure: {heading}", quote=True)] * pictures
    described = iter(texts)
    marker = 'alt="No description has been provided for this image"'
    return re.sub(re.escape(marker), lambda found: f'alt="{next(described, "Figure")}"', page)


def _navigation(around: dict[str, Path | None], reference: bool) -> str:
    links = ['<a href="index.html">All pages</a>']
    links += [
        f'<a href="{path.stem}.html" rel="{rel[:4]}">{rel}: {path.stem}</a>' for rel, path in around.items() if path
    ]
    links += ['<a href="api/bonlib.html">Reference</a>'] if reference else []
    return f'<nav aria-label="pages">{" ".join(links)}</nav>'


def _card(stem: str, title: str, answer: str, picture: str) -> str:
    image = f'<img alt="A figure of this page" src="data:image/png;base64,{picture}">' if picture else ""
    heading = f'<h2><a href="{stem}.html">{html.escape(title)}</a></h2>'
    return f'<div class="card">{image}<div>{heading}<p>{html.escape(answer)}</p></div></div>'


def _thumbnail(notebook: Any) -> str:
    """The picture of a notebook that holds most, made small, as base64; empty where it has none."""
    from PIL import Image

    outputs = (output for cell in notebook.cells for output in cell.get("outputs", []))
    coded = max((output.get("data", {}).get("image/png", "") for output in outputs), key=len, default="")
    if not coded:
        return ""
    image = Image.open(io.BytesIO(base64.b64decode(coded))).convert("RGB")
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "png", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def _title_and_answer(source: str) -> tuple[str, str]:
    """Heading and first paragraph of a notebook's opening cell, as plain text."""
    heading, *paragraphs = [part.strip() for part in source.split("\n\n") if part.strip()]
    return heading.lstrip("# "), _plain(paragraphs[0]) if paragraphs else ""


def _plain(source: str) -> str:
    """Markdown or HTML as running text."""
    text = re.sub(r"<math.*?</math>|<[^>]+>", "", source, flags=re.DOTALL)
    text = re.sub(r"\[([^]]*)\]\([^)]*\)|[*`]|^#+ ", r"\1", text, flags=re.MULTILINE)
    return " ".join(text.split())


def main() -> None:
    """The committed notebooks, as they were executed, to ``build/report``."""
    from bonlib.core.paths import project_dir

    root = project_dir()
    if root is None:
        raise SystemExit("The report is made in a checkout of the repository (git clone).")
    print(f"Report: {write_report(root / 'notebooks', root / 'build' / 'report', reference=True)}")


if __name__ == "__main__":
    main()
