"""Rows of a run's table, compared with their checksums when they are first read."""

from __future__ import annotations

import numpy as np

from landscape.file_handle import FileHandle, RunFormatError
from landscape.run_tables import CHECKSUM, row_checksums, table_names

SPAN_BYTES = 2**20
"""Rows within so many bytes of each other are read together."""


class RowGuard:
    """Raises where a row is not what was recorded; each row is compared once.

    Parameters
    ----------
    handle : FileHandle
        The open file.
    table : str
        Name of the table.
    n_rows : int
        Committed rows.
    """

    def __init__(self, handle: FileHandle, table: str, n_rows: int):
        self.handle, self.table = handle, table
        self.right = np.zeros(n_rows, bool)
        self._damage: dict[tuple[int, int], str] = {}
        """What was found wrong, so that it is not read again: damaged indexes are slow to read."""
        self._columns: list[str] | None = None

    def check(self, rows: int | slice | np.ndarray) -> None:
        """Compare those of the committed `rows` that were not compared before.

        Raises
        ------
        RunFormatError
            If one differs from its checksum, or cannot be read.
        """
        if self.right[rows].all():
            return
        wanted = np.zeros(len(self.right), bool)
        wanted[rows] = True
        for (start, stop), text in self._damage.items():
            if (wanted[start:stop] & ~self.right[start:stop]).any():
                raise RunFormatError(text)
        wanted &= ~self.right
        if self._columns is None:
            self._columns = ["step", *table_names(self.handle.group(self.table))]
        together = max(1, SPAN_BYTES // self._row_bytes())
        first, end = int(wanted.argmax()), len(wanted) - int(wanted[::-1].argmax())
        for start in range(first - first % together, end, together):
            inside = np.flatnonzero(wanted[start : start + together])
            if inside.size:
                self._compare(slice(start + int(inside[0]), start + int(inside[-1]) + 1))

    def _compare(self, rows: slice) -> None:
        steps, *values = (self.handle[f"{self.table}/{name}"][rows] for name in self._columns)
        found = row_checksums(steps, values) == self.handle[f"{self.table}/{CHECKSUM}"][rows]
        self.right[rows] = found
        if not found.all():
            wrong = steps[~found]
            some = ", ".join(map(str, wrong[:3].tolist())) + (", …" if len(wrong) > 3 else "")
            text = (
                f"{self.handle.path}: rows of {self.table} are damaged (steps {some}): their checksums differ. "
                "`python -m landscape verify` says what is right; open_run(path, check=False) reads all as it is"
            )
            self._damage[rows.start, rows.stop] = text
            raise RunFormatError(text)

    def _row_bytes(self) -> int:
        columns = [self.handle[f"{self.table}/{name}"] for name in self._columns]
        return sum(column.dtype.itemsize * int(np.prod(column.shape[1:])) for column in columns)

    def __getstate__(self):  # to another process, which reads the file itself
        return self.__dict__ | {"right": np.zeros(len(self.right), bool), "_damage": {}}
