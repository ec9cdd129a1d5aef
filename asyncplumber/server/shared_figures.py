"""
The figures of several workers as one: whichever of them is asked for metrics answers for all.

A table in shared memory has a row for each worker.  The successor of a worker counts on from what
its predecessor left there, so that no counter ever runs backwards.
"""

from __future__ import annotations

from mmap import mmap
from typing import IO
from zlib import crc32

from asyncplumber.http.status import Figures
from asyncplumber.server.accept import shared_file

NOTING = (
    0.25  # seconds between notes: what a worker counts after its last one is lost if it is killed
)
COLUMNS = 64  # numbers in a row: two of our own, and the figures
_ALIVE, _NAMES, _FIRST = (
    0,
    1,
    2,
)  # columns: whether the worker lives, a checksum of the figures' names, the first figure
_WORD = 8  # bytes of a number


class SharedFigures:
    """The table.  A number is written in one piece, so that there is no lock."""

    def __init__(self, file: IO[bytes]) -> None:
        """`file` is that of `for_workers`, as a worker has inherited it."""
        self._file = file
        self._numbers = memoryview(mmap(file.fileno(), 0)).cast("d")

    @classmethod
    def for_workers(cls, count: int) -> SharedFigures:
        """A new table, to be inherited."""
        return cls(shared_file("figures", count * COLUMNS * _WORD))

    def fileno(self) -> int:
        return self._file.fileno()

    def row(self, number: int) -> memoryview[float]:
        """The row of a worker; the first is number 1."""
        return self._numbers[(number - 1) * COLUMNS : number * COLUMNS]

    def leave(self, number: int) -> None:
        """This worker has ended: its gauges count no more, its counters do."""
        self.row(number)[_ALIVE] = 0.0

    def totals(self, figures: Figures) -> Figures:
        """The same figures, summed over all workers that have them."""
        names = _checksum(figures)
        rows = [self.row(at + 1) for at in range(len(self._numbers) // COLUMNS)]
        ours = [row for row in rows if row[_NAMES] == names]
        living = [row for row in ours if row[_ALIVE]]
        return {
            name: (kind, text, sum(row[column] for row in (ours if kind == "counter" else living)))
            for column, (name, (kind, text, _)) in enumerate(figures.items(), _FIRST)
        }


class WorkerFigures:
    """The table as one worker sees it."""

    def __init__(self, table: SharedFigures, number: int) -> None:
        self._table = table
        self._row = table.row(number)
        self._before: list[float] | None = None  # what our predecessors counted

    def combine(self, figures: Figures) -> Figures:
        """
        Note the figures of this worker, and return those of all.

        Raises ValueError if there are more figures than the table has columns for.
        """
        if len(figures) > COLUMNS - _FIRST:
            raise ValueError(f"{len(figures)} figures are too many for {COLUMNS} columns")
        row, names = self._row, _checksum(figures)
        if self._before is None:
            known = row[_NAMES] == names  # another version of us may have left other figures there
            kinds = [kind for kind, _, _ in figures.values()]
            self._before = [
                row[column] if known and kind == "counter" else 0.0
                for column, kind in enumerate(kinds, _FIRST)
            ]
            row[_NAMES] = row[_NAMES] if known else 0.0
        for column, (_, _, value) in enumerate(figures.values(), _FIRST):
            row[column] = self._before[column - _FIRST] + value
        row[_NAMES], row[_ALIVE] = names, 1.0
        return self._table.totals(figures)


def _checksum(figures: Figures) -> float:
    return float(crc32("\n".join(figures).encode()) or 1)
