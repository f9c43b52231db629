"""Figures of plotly on the gallery's pages: one copy of its script for the site, its text in the page's colour."""

from __future__ import annotations

import importlib.util
from pathlib import Path

SCRIPT = "plotly.min.js"
LOAD_ONCE = f"""<script>
if (!window.Plotly) document.write('<script src="../_static/{SCRIPT}"><\\/script>');
</script>
"""
FIT_PAGE = """
const figure = document.getElementById("{plot_id}");
const ink = () => Plotly.relayout(figure, {"font.color": getComputedStyle(document.body).color});
new MutationObserver(ink).observe(document.documentElement, {attributes: true, attributeFilter: ["data-theme"]});
ink();
const height = figure.layout.height;
const fit = () => {
  const width = figure.parentNode.clientWidth;
  if (width) Plotly.relayout(figure, {width: width, height: Math.min(height || 450, 1.1 * width)});
};
new ResizeObserver(fit).observe(figure.parentNode);
"""


def setup(app) -> dict:
    """Write the site's own copy of plotly's script, when a page needs it."""
    if importlib.util.find_spec("plotly") is not None:
        app.connect("build-finished", _copy_script)
    return {"parallel_read_safe": True}


def use_site_script() -> None:
    """Make figures write a link to the site's script instead of its text; in each process that runs scripts."""
    if importlib.util.find_spec("plotly") is None:
        return
    import plotly.io
    from plotly.io.base_renderers import MimetypeRenderer

    class Page(MimetypeRenderer):
        def to_mimebundle(self, fig_dict):
            html = plotly.io.to_html(
                fig_dict,
                include_plotlyjs=False,
                full_html=False,
                post_script=FIT_PAGE,
                default_height=None,
                auto_play=False,
                config={"displaylogo": False},
                validate=False,
            )
            return {"text/html": LOAD_ONCE + html}

    plotly.io.renderers["gallery"] = Page()
    plotly.io.renderers.default = "gallery"


def _copy_script(app, exception: Exception | None) -> None:
    """Copy the script from the installed plotly, where a page links to it."""
    pages = [] if exception else Path(app.outdir, "examples").glob("*.html")
    if any(f"_static/{SCRIPT}" in page.read_text(encoding="utf-8") for page in pages):
        from plotly.offline import get_plotlyjs

        path = Path(app.outdir, "_static", SCRIPT)
        if not path.exists() or path.read_text(encoding="utf-8") != get_plotlyjs():
            path.write_text(get_plotlyjs(), encoding="utf-8")
