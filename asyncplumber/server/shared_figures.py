"""
The figures of several workers as one: a scrape of any worker returns those of all.

A table in shared memory has a row for each worker, and a figure has as many columns as it has
numbers.  A restarted worker counts on from the row that its predecessor left, so that no counter
ever goes backwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from mmap import mmap
from typing import IO
from zlib import crc32

from asyncplumber.figures import Figure, Figures
from asyncplumber.server.accept import shared_file

# Seconds between publications.  What a worker counts after its last one is lost if it is killed.
PUBLISH_INTERVAL = 0.25
# Bytes of a row.  How many figures there are depends on what the workers are configured to do,
# which the parent does not know.  So a row is far longer than any set of figures.  The file has
# holes: what no worker writes takes no memory.
ROW_BYTES = 256 * 1024
_WORD = 8  # bytes of a number
# Columns: whether the worker lives, a checksum of what its numbers mean, the first number.
_ALIVE, _MEANING, _FIRST = 0, 1, 2
COLUMNS = ROW_BYTES // _WORD - _FIRST  # the most numbers of one worker
_MERGES: Mapping[str, Callable[[Iterable[float]], float]] = {"sum": sum, "min": min, "max": max}


class SharedFigures:
    """The table.  A number is written in one piece, so there is no lock."""

    def __init__(self, file: IO[bytes]) -> None:
        """Map the file of `for_workers`, as a worker inherits it."""
        self._file = file
        numbers = memoryview(mmap(file.fileno(), 0)).cast("d")
        width = ROW_BYTES // _WORD
        self._rows = [numbers[begin : begin + width] for begin in range(0, len(numbers), width)]

    @classmethod
    def for_workers(cls, count: int) -> SharedFigures:
        """Make a new table, to be inherited."""
        return cls(shared_file("figures", count * ROW_BYTES))

    def fileno(self) -> int:
        return self._file.fileno()

    def close(self) -> None:
        """Close the file of the table.  The table can still be used."""
        self._file.close()

    def row(self, number: int) -> memoryview[float]:
        """Return the row of a worker; the first is number 1."""
        return self._rows[number - 1]

    def clear(self, number: int) -> None:
        """Note that a worker has ended: its counters still count, its gauges do not."""
        self.row(number)[_ALIVE] = 0.0

    def totals(self, figures: Figures) -> Figures:
        """Return the same figures, of all workers that have them."""
        meaning = _checksum(figures)
        ours = [row for row in self._rows if row[_MEANING] == meaning]
        living = [row for row in ours if row[_ALIVE]]
        totals, column = {}, _FIRST
        for name, figure in figures.items():
            rows = living if figure.kind == "gauge" else ours
            columns = range(column, column := column + len(figure.numbers))
            merged = tuple(_merged(figure, [row[at] for row in rows]) for at in columns)
            totals[name] = replace(figure, numbers=merged)
        return totals


def _merged(figure: Figure, numbers: list[float]) -> float:
    """Return what the numbers of several workers make together; NaN if none of them is known."""
    known = [number for number in numbers if not math.isnan(number)]
    return _MERGES[figure.merge](known) if known else math.nan


class WorkerFigures:
    """One worker's row of the table."""

    def __init__(self, table: SharedFigures, number: int) -> None:
        self._table = table
        self._row = table.row(number)
        self._before: list[float] | None = None  # what this worker's predecessors counted

    def combine(self, figures: Figures) -> Figures:
        """
        Publish the figures of this worker, and return those of all workers.

        Raises:
            ValueError: There are more numbers than the table has columns.
        """
        numbers = [number for figure in figures.values() for number in figure.numbers]
        if len(numbers) > COLUMNS:
            raise ValueError(f"{len(numbers)} numbers are too many for {COLUMNS} columns")
        row, meaning = self._row, _checksum(figures)
        if self._before is None:
            known = row[_MEANING] == meaning  # another version may have left other figures
            adds = [
                known and figure.kind != "gauge"
                for figure in figures.values()
                for _ in figure.numbers
            ]
            self._before = [
                row[column] if goes_on else 0.0 for column, goes_on in enumerate(adds, _FIRST)
            ]
            row[_MEANING] = row[_MEANING] if known else 0.0
        for column, number in enumerate(numbers):
            row[column + _FIRST] = self._before[column] + number
        row[_MEANING], row[_ALIVE] = meaning, 1.0
        return self._table.totals(figures)


def _checksum(figures: Figures) -> float:
    """Return a number that is the same only for figures whose numbers mean the same."""
    text = "\n".join(f"{name} {figure.shape}" for name, figure in figures.items())
    return float(crc32(text.encode()) or 1)
