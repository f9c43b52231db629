"""How a text that describes a file is laid out: titled lines, and steps in a few words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def spans(steps: np.ndarray) -> str:
    """How `steps` are spaced, stretch by stretch.

    >>> import numpy as np
    >>> spans(np.r_[0:100:25, 100:104, 125, 150, 175])
    '11 rows: every 25 from 0 to 100, every 1 to 103, every 22 to 125, every 25 to 175'
    >>> spans(np.arange(3))
    '3 rows: every 1 from 0 to 2'
    """
    import numpy as np

    if len(steps) < 2:
        return f"1 row: step {steps[0]}" if len(steps) else "no rows"
    gaps = np.diff(steps)
    ends = [*np.flatnonzero(np.diff(gaps)) + 1, len(gaps)]  # the last gap of each stretch, plus one
    parts = [f"every {gaps[0]} from {steps[0]} to {steps[ends[0]]}"]
    parts += [f"every {gaps[end - 1]} to {steps[end]}" for end in ends[1:]]
    if len(parts) > 8:
        parts = [f"from {steps[0]} to {steps[-1]}, {gaps.min()} to {gaps.max()} apart in {len(parts)} stretches"]
    return f"{len(steps)} rows: {', '.join(parts)}"


def row_text(title: str, text: str) -> str:
    """A line with its title in the first column."""
    return f"{title:<12} {text}".rstrip()
