"""The look of every figure: journal sizes, text of 7 pt and more, colours that colour-blind readers tell apart."""

from __future__ import annotations

import string
from collections.abc import Iterable
from contextlib import AbstractContextManager

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes

SINGLE_COLUMN = 3.4  # inches: 86 mm
DOUBLE_COLUMN = 7.0  # 178 mm
SMALLEST_TEXT = 7  # points, in print
MM = 1 / 25.4  # inches

BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"  # the palette of Okabe and Ito (2008)
PURPLE, SKY, YELLOW, BLACK = "#CC79A7", "#56B4E9", "#F0E442", "#000000"
CLASS_COLORS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, YELLOW, BLACK)
MODE_COLORS = (VERMILION, SKY, PURPLE, GREEN, ORANGE, BLUE, YELLOW, BLACK)
MISSING = "0.85"  # where a surface has no finite value

THRESHOLD = {"color": BLACK, "linestyle": (0, (4, 2)), "linewidth": 0.9}  # dashed: the stability threshold
ONSET = {"color": "0.35", "linestyle": (0, (5, 1.5, 1, 1.5)), "linewidth": 0.9, "zorder": 0.9}

RC = {
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "figure.titlesize": 8,
    "figure.figsize": (SINGLE_COLUMN, 2.3),
    "figure.dpi": 150,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.03,
    "figure.constrained_layout.w_pad": 0.03,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,  # text stays text, which journals ask for
    "svg.fonttype": "none",
    "axes.prop_cycle": mpl.cycler(color=CLASS_COLORS),
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.0,
    "lines.markersize": 3,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.minor.size": 1.5,
    "ytick.minor.size": 1.5,
    "legend.frameon": False,
    "legend.handlelength": 1.4,
    "legend.handletextpad": 0.5,
    "legend.columnspacing": 1.0,
    "legend.borderaxespad": 0.2,
    "legend.labelspacing": 0.3,
    "hatch.linewidth": 0.5,
    "agg.path.chunksize": 10_000,  # lines of 10⁵ points that alternate at every step
}

TEXT_SIZES = [
    "font.size",
    "axes.labelsize",
    "axes.titlesize",
    "xtick.labelsize",
    "ytick.labelsize",
    "legend.fontsize",
    "figure.titlesize",
]


def style(
    *, width: str | float | None = None, height: float | None = None, text: float = 8
) -> AbstractContextManager[None]:
    """A context in which figures look like those of the gallery.

    A plot that makes its own figure already uses it; open it around figures whose axes you make yourself. Text in PDF
    and SVG stays text, in TrueType fonts that PDF embeds; `viz.save_figure` writes them.

    Parameters
    ----------
    width : {"single", "double"} or float, optional
        Width of new figures: a column of 86 mm or two of 178 mm, as APS has them, or any other in mm: Nature has 89 and
        183, Elsevier 90 and 190.
    height : float, optional
        Their height in mm, 58 by default.
    text : float
        Size of labels in points, at least 7; numbers on axes and legends have a point less, but not below 7.

    Raises
    ------
    ValueError
        If a size is out of range.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> with style(width="double", height=60):
    ...     figure, axes = plt.subplots(1, 2)
    >>> axes[0].xaxis.label.get_fontsize()
    8.0
    >>> (figure.get_size_inches() * 25.4).round().tolist()
    [178.0, 60.0]
    >>> plt.close(figure)
    """
    if not SMALLEST_TEXT <= text <= 24:
        raise ValueError(f"text must be from {SMALLEST_TEXT} to 24 points to be read in print, got {text:g}")
    small = max(text - 1, SMALLEST_TEXT)
    sizes = {name: text if RC[name] == RC["font.size"] else small for name in TEXT_SIZES}
    return mpl.rc_context(RC | sizes | {"figure.figsize": _figure_size(width, height)})


def _figure_size(width: str | float | None, height: float | None) -> tuple[float, float]:
    """Width and height in inches."""
    columns = {"single": SINGLE_COLUMN, "double": DOUBLE_COLUMN, None: SINGLE_COLUMN}
    if isinstance(width, str) and width not in columns:
        raise ValueError(f'width must be "single", "double" or a number of mm, got {width!r}')
    across = columns[width] if width in columns else float(width) * MM
    down = RC["figure.figsize"][1] if height is None else float(height) * MM
    if not (0.4 <= across <= 20 and 0.4 <= down <= 20):
        raise ValueError(f"width and height must be from 10 to 500 mm, got {across / MM:.0f} and {down / MM:.0f}")
    return across, down


def panel_letters(axes: Axes | Iterable[Axes] | dict[str, Axes], *, start: str = "a") -> None:
    """Letters (a), (b), … outside the top left corner of each axes, in the order given.

    Parameters
    ----------
    axes : Axes or iterable of Axes or dict of Axes
        As `plt.subplots` or `plt.subplot_mosaic` return them; an array is read row by row.
    start : str
        The first letter.
    """
    axes = np.ravel(list(axes.values()) if isinstance(axes, dict) else axes)
    first = string.ascii_lowercase.index(start)
    if first + len(axes) > 26:
        raise ValueError(f"axes must be at most {26 - first} when letters start at {start!r}, got {len(axes)}")
    for ax, letter in zip(axes, string.ascii_lowercase[first:], strict=False):
        ax.annotate(
            f"({letter})",
            xy=(0, 1),
            xycoords="axes fraction",
            xytext=(-4, 4),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize="medium",
            fontweight="bold",
        )
