"""The site: the pages beside this file, the committed notebooks as executed, the reference from docstrings."""

import os
import re
import shutil
import sys
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE)]
import tables

# Sphinx reads what lies below this folder: the notebooks and the changelog are copied here, and ignored by git.
shutil.rmtree(HERE / "notebooks", ignore_errors=True)
NOTEBOOKS = Path(os.environ.get("BONLIB_NOTEBOOKS", ROOT / "notebooks"))  # the study gives its own
shutil.copytree(NOTEBOOKS, HERE / "notebooks", ignore=shutil.ignore_patterns("sweeps", ".*", "*.key"))
shutil.copy(ROOT / "CHANGELOG.md", HERE / "changelog.md")
shutil.rmtree(HERE / "figures", ignore_errors=True)
shutil.copytree(ROOT / "figures", HERE / "figures", ignore=shutil.ignore_patterns("*.svg", "quick"))
(HERE / "gallery.md").write_text(
    "# Figures of the study\n\nEach with a sentence that stands before it in its notebook.\n\n"
    + tables.gallery(NOTEBOOKS)
    + "\n"
)

project, author = "bonlib", "the bonlib developers"
copyright = "2026, the bonlib developers"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
nb_execution_mode = "off"
nb_ipywidgets_js: dict[str, dict[str, str]] = {}  # nothing from a network; a figure beside shows the same
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings give types and shapes
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_custom_sections = [("Source", "notes")]
html_theme = "furo"
html_title = "bonlib"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["bonlib.css"]
html_show_sphinx = False
html_copy_source = False
suppress_warnings = ["mystnb.unknown_mime_type"]  # of widgets


def typeset(translator, node, display: str) -> None:
    """A formula as MathML, which browsers show without a script or a network."""
    translator.body.append(" ".join(convert(node.astext(), display=display).split()))
    raise nodes.SkipNode


def describe(app, doctree) -> None:
    """Give each picture of a notebook the text that stands before it, for those who cannot see it."""
    for image in doctree.findall(nodes.image):
        if image.get("alt"):
            continue
        before = [text for text in doctree.findall(nodes.paragraph) if (text.line or 0) <= (image.line or 0)]
        section = image.parent
        while section is not None and not isinstance(section, nodes.section):
            section = section.parent
        title = section.next_node(nodes.title).astext() if section is not None else ""
        text = before[-1].astext() if before else ""
        image["alt"] = re.sub(r"\s+", " ", f"Figure: {title}. {text}")[:300]


def from_here(app, name: str, source: list[str]) -> None:
    """Fill tables from the records that are there now, and point at the notebooks that lie beside the pages here."""
    source[0] = tables.filled(source[0]).replace("](../notebooks/", "](notebooks/")


def setup(app) -> None:
    """Register all."""
    app.connect("source-read", from_here)
    app.add_html_math_renderer(
        "mathml",
        inline_renderers=(lambda translator, node: typeset(translator, node, "inline"), None),
        block_renderers=(lambda translator, node: typeset(translator, node, "block"), None),
    )
    app.connect("doctree-read", describe)
