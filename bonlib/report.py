"""Executed notebooks to HTML pages with an index, readable without a network."""

import html
import re
from pathlib import Path

from bonlib.paths import write_atomically

# nbconvert's own page without the scripts that it would load from a network.
_OFFLINE = """{% extends 'lab/index.html.j2' %}
{% block html_head_js_requirejs %}{% endblock %}
{% block html_head_js_mathjax %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}
"""
_INDEX = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>bonlib: the study</title>
<style>
body {{ font: 17px/1.5 system-ui, sans-serif; max-width: 46em; margin: 3em auto; padding: 0 1em; }}
h1 {{ font-size: 1.6em; }} h2 {{ font-size: 1.1em; margin-bottom: 0; }}
p {{ margin-top: .3em; }} a {{ color: #0072B2; }}
</style>
</head>
<body>
<h1>Bag of Negatives: the study</h1>
<p>Hard negative mining for deep metric learning at very large numbers of identities.
Each page is an executed notebook.</p>
{entries}
</body>
</html>
"""


def write_report(executed: Path, report: Path) -> Path:
    """Convert the executed notebooks in a folder to pages.

    Args:
        executed: folder of executed notebooks.
        report: folder for the pages; pages of notebooks that are gone are removed.

    Returns:
        The index page.
    """
    import nbformat
    from jinja2 import DictLoader
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(extra_loaders=[DictLoader({"offline.html.j2": _OFFLINE})], template_file="offline.html.j2")
    report.mkdir(parents=True, exist_ok=True)
    for stale in report.glob("*.html"):
        stale.unlink()
    entries = []
    for path in sorted(executed.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        page, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"name": path.stem}})
        page = re.sub(r'href="(\d\d_\w+)\.ipynb"', r'href="\1.html"', page)
        write_atomically(report / f"{path.stem}.html", lambda file, page=page: file.write_text(page, encoding="utf-8"))
        title, answer = _title_and_answer(notebook.cells[0].source)
        entries.append(f'<h2><a href="{path.stem}.html">{html.escape(title)}</a></h2>\n<p>{html.escape(answer)}</p>')
    index = report / "index.html"
    write_atomically(index, lambda file: file.write_text(_INDEX.format(entries="\n".join(entries)), encoding="utf-8"))
    return index


def _title_and_answer(source: str) -> tuple[str, str]:
    """Heading and first paragraph of a notebook's opening cell, as plain text."""
    heading, *paragraphs = [part.strip() for part in source.split("\n\n") if part.strip()]
    text = re.sub(r"\[([^]]*)\]\([^)]*\)|[*`]", r"\1", paragraphs[0]) if paragraphs else ""
    return heading.lstrip("# "), " ".join(text.split())
