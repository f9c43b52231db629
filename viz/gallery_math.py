"""Mathematics of the gallery's pages, set by matplotlib's mathtext: no script from the network, no TeX."""

from __future__ import annotations

import base64
import html
import io

from docutils import nodes
from matplotlib import rc_context
from matplotlib.font_manager import FontProperties
from matplotlib.mathtext import MathTextParser, math_to_image
from sphinx.application import Sphinx
from sphinx.util import logging

SIZE = 16  # of the text around, in pixels
SETTINGS = {
    "mathtext.fontset": "cm",
    "svg.fonttype": "path",
    "svg.hashsalt": "gallery",
    "savefig.transparent": True,  # in the dark, formulas are turned to white
}
logger = logging.getLogger(__name__)


def setup(app: Sphinx) -> dict:
    """Offer the renderer to Sphinx, as ``html_math_renderer = "mathtext"``."""
    app.add_html_math_renderer("mathtext", (visit_inline, None), (visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def visit_inline(writer, node: nodes.math) -> None:
    """Formula within a line."""
    writer.body.append(image(node.astext(), node))
    raise nodes.SkipNode


def visit_block(writer, node: nodes.math_block) -> None:
    """Formula of its own, one image for each line that ends in a double backslash."""
    lines = [line.replace("&", "").strip() for line in node.astext().split(r"\\")]
    body = "<br>".join(image(line, node) for line in lines if line)
    writer.body.append(f'<div class="formula" style="text-align: center; margin: 1em 0">{body}</div>')
    raise nodes.SkipNode


def image(tex: str, node: nodes.Node) -> str:
    """HTML of a formula: an image of the text's size on its baseline, or its source where mathtext does not know it."""
    tex = " ".join(tex.split())
    font, file = FontProperties(size=SIZE), io.BytesIO()
    try:
        with rc_context(SETTINGS):
            width, height, depth, *_ = MathTextParser("path").parse(f"${tex}$", dpi=72, prop=font)
            math_to_image(f"${tex}$", file, prop=font, dpi=72, format="svg")
    except ValueError as error:
        logger.warning("formula not understood: %s", str(error).splitlines()[-1], location=node)
        return f"<code>{html.escape(tex)}</code>"
    data = base64.b64encode(file.getvalue()).decode()
    style = f"height: {height / SIZE:.3f}em; width: {width / SIZE:.3f}em; vertical-align: {-depth / SIZE:.3f}em"
    return f'<img class="mathtext" src="data:image/svg+xml;base64,{data}" alt="{html.escape(tex)}" style="{style}">'
