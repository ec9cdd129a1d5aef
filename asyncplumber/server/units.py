"""
Numbers as people write them: ``1d``, ``1.5h``, ``15s``, ``1MB``, ``64KiB``, ``100,000``.

Each `Quantity` reads one kind of number within its bounds, and writes it back in the same form.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

SECONDS: Mapping[str, float] = {"ms": 0.001, "s": 1, "min": 60, "m": 60, "h": 3600, "d": 86400}
# Decimal prefixes of the SI, and binary ones of IEC 80000-13.
BYTES: Mapping[str, float] = {
    "b": 1,
    **{f"{prefix}b": 1000**power for power, prefix in enumerate("kmgt", 1)},
    **{f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgt", 1)},
}
_NAMES = {"kib": "KiB", "mib": "MiB", "gib": "GiB", "tib": "TiB"}


@dataclass(frozen=True)
class Quantity:
    """
    A kind of number that an option takes.

    Attributes:
        least: The smallest value, in the base unit.
        most: The largest value, in the base unit.
        whole: Whether only whole numbers are taken.
        units: The factor of each unit, by its name in lower case.  A number without a unit is in
            the base unit.
        example: What a message shows to somebody who wrote it otherwise.
    """

    least: float
    most: float
    whole: bool = True
    units: Mapping[str, float] | None = None
    example: str = ""

    def __call__(self, text: str) -> float:
        """
        Read a number.

        Raises:
            ValueError: It is no number, or out of bounds.  The message is a sentence for the user.
        """
        match = re.fullmatch(r"([0-9][0-9,_]*(?:\.[0-9]+)?|\.[0-9]+)\s*([a-zA-Z]*)", text.strip())
        factor = (self.units or {}).get(match[2].lower()) if match and match[2] else 1
        if match is None or factor is None:
            example = f", such as {self.example}" if self.example else ""
            raise ValueError(f"{text!r} is not a {self._kind}{example}")
        number = float(match[1].replace(",", "").replace("_", "")) * factor
        if self.whole and not math.isclose(number, round(number), abs_tol=1e-6):
            raise ValueError(f"{text!r} is not a whole number")
        if not self.least <= number <= self.most:
            raise ValueError(
                f"{text!r} is not from {self.text(self.least)} to {self.text(self.most)}"
            )
        return round(number) if self.whole else number

    @property
    def _kind(self) -> str:
        if self.units is SECONDS:
            return "duration"
        return "size" if self.units is BYTES else "number"

    def text(self, number: float) -> str:
        """Write a number as a person would: in the largest unit of which it is a whole multiple."""
        if self.units is SECONDS:
            for name in ("d", "h", "min", "s"):
                if number and number % SECONDS[name] == 0:
                    return f"{number / SECONDS[name]:,.0f}{name}"
            return f"{number:g}s"
        if self.units is BYTES:
            for name in ("tib", "gib", "mib", "kib"):
                if number and number % BYTES[name] == 0:
                    return f"{number / BYTES[name]:,.0f}{_NAMES[name]}"
            return f"{number:,.0f}B"
        return f"{number:,.0f}" if self.whole else f"{number:g}"


def count(least: int, most: int) -> Quantity:
    """Return the kind of a whole number within these bounds."""
    return Quantity(least, most)


def duration(least: float, most: float) -> Quantity:
    """Return the kind of a time within these bounds, in seconds."""
    return Quantity(least, most, whole=False, units=SECONDS, example="15s, 1.5h or 1d")


def size(least: int, most: int) -> Quantity:
    """Return the kind of a number of bytes within these bounds."""
    return Quantity(least, most, units=BYTES, example="64KiB or 1MB")
