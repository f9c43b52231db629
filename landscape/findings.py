"""What the checks of a run file found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

Kind = Literal["ok", "note", "skipped", "damaged"]


@dataclass(frozen=True)
class Finding:
    """One result of a check.

    Attributes
    ----------
    kind : {"ok", "note", "skipped", "damaged"}
        "note" is worth knowing and no damage; "skipped" could not be checked.
    where : str
        What was checked: a group of the file, or "update rule".
    text : str
        What was found.
    rows : tuple of (int, int)
        First and last of each stretch of rows that it is about; empty where it is not about single rows.
    """

    kind: Kind
    where: str
    text: str
    rows: tuple[tuple[int, int], ...] = ()

    @property
    def place(self) -> str:
        """Where it is, in a few words."""
        return f"{self.where} {row_text(self.rows)}" if self.rows else self.where


class Findings(list[Finding]):
    """A list of findings, to which checks add theirs."""

    def ok(self, where: str, text: str) -> None:
        """Add what is as it should be."""
        self.append(Finding("ok", where, text))

    def note(self, where: str, text: str, rows: Iterable[int] = ()) -> None:
        """Add what is worth knowing and no damage."""
        self.append(Finding("note", where, text, stretches(rows)))

    def skipped(self, where: str, text: str) -> None:
        """Add what could not be checked."""
        self.append(Finding("skipped", where, text))

    def damaged(self, where: str, text: str, rows: Iterable[int] = ()) -> None:
        """Add damage."""
        self.append(Finding("damaged", where, text, stretches(rows)))

    @property
    def any_damage(self) -> bool:
        """Whether damage was found so far."""
        return any(finding.kind == "damaged" for finding in self)


def stretches(rows: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """First and last of each stretch of successive `rows`, which increase.

    >>> stretches([3, 4, 5, 9])
    ((3, 5), (9, 9))
    """
    rows = np.asarray(rows if isinstance(rows, np.ndarray) else list(rows), dtype=np.int64)
    if not rows.size:
        return ()
    breaks = np.flatnonzero(np.diff(rows) != 1)
    first, last = rows[np.r_[0, breaks + 1]], rows[np.r_[breaks, rows.size - 1]]
    return tuple(zip(first.tolist(), last.tolist(), strict=True))


def row_text(found: tuple[tuple[int, int], ...]) -> str:
    """Stretches of rows as one would say them; of many, the first few and how many more.

    >>> row_text(((3, 5), (9, 9))), row_text(((7, 7),))
    ('rows 3–5, 9', 'row 7')
    """
    parts = [str(first) if first == last else f"{first}–{last}" for first, last in found[:6]]
    more = sum(last - first + 1 for first, last in found[6:])
    single = len(found) == 1 and found[0][0] == found[0][1]
    return f"row{'' if single else 's'} {', '.join(parts)}" + (f" and {more} more" if more else "")
