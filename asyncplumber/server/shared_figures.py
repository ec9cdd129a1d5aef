"""
The sum of the figures of several workers: a scrape of any worker returns those of all.

A table in shared memory has a row for each worker.  A restarted worker counts on from the row that
its predecessor left, so that no counter ever goes backwards.
"""

from __future__ import annotations

from mmap import mmap
from typing import IO
from zlib import crc32

from asyncplumber.core.status import Figure, Figures
from asyncplumber.server.accept import shared_file

# Seconds between publications.  What a worker counts after its last one is lost if it is killed.
PUBLISH_INTERVAL = 0.25
COLUMNS = 64  # numbers in a row: two of our own, and the figures
# Columns: whether the worker lives, a checksum of the figures' names, the first figure.
_ALIVE, _NAMES, _FIRST = 0, 1, 2
_WORD = 8  # bytes of a number


class SharedFigures:
    """The table.  A number is written in one piece, so there is no lock."""

    def __init__(self, file: IO[bytes]) -> None:
        """Map the file of `for_workers`, as a worker inherits it."""
        self._file = file
        self._numbers = memoryview(mmap(file.fileno(), 0)).cast("d")

    @classmethod
    def for_workers(cls, count: int) -> SharedFigures:
        """Make a new table, to be inherited."""
        return cls(shared_file("figures", count * COLUMNS * _WORD))

    def fileno(self) -> int:
        return self._file.fileno()

    def close(self) -> None:
        """Close the file of the table.  The table can still be used."""
        self._file.close()

    def row(self, number: int) -> memoryview[float]:
        """Return the row of a worker; the first is number 1."""
        return self._numbers[(number - 1) * COLUMNS : number * COLUMNS]

    def clear(self, number: int) -> None:
        """Note that a worker has ended: its counters still count, its gauges do not."""
        self.row(number)[_ALIVE] = 0.0

    def totals(self, figures: Figures) -> Figures:
        """Return the same figures, summed over all workers that have them."""
        names = _checksum(figures)
        rows = [self.row(at + 1) for at in range(len(self._numbers) // COLUMNS)]
        ours = [row for row in rows if row[_NAMES] == names]
        living = [row for row in ours if row[_ALIVE]]
        return {
            name: Figure(
                kind, text, sum(row[column] for row in (ours if kind == "counter" else living))
            )
            for column, (name, (kind, text, _)) in enumerate(figures.items(), _FIRST)
        }


class WorkerFigures:
    """One worker's row of the table."""

    def __init__(self, table: SharedFigures, number: int) -> None:
        self._table = table
        self._row = table.row(number)
        self._before: list[float] | None = None  # what this worker's predecessors counted

    def combine(self, figures: Figures) -> Figures:
        """
        Publish the figures of this worker, and return the sum over all workers.

        Raises:
            ValueError: There are more figures than the table has columns.
        """
        if len(figures) > COLUMNS - _FIRST:
            raise ValueError(f"{len(figures)} figures are too many for {COLUMNS} columns")
        row, names = self._row, _checksum(figures)
        if self._before is None:
            known = row[_NAMES] == names  # another version may have left other figures
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
