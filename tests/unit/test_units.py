"""Numbers of options, as people write them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.server.units import Quantity, count, duration, size


class QuantityTests(SynchronousTestCase):
    """What is read, what is refused, and what is written."""

    def refused(self, kind: Quantity, text: str) -> str:
        return str(self.assertRaises(ValueError, kind, text))

    def test_a_number_alone_is_in_the_base_unit(self) -> None:
        """Seconds and bytes."""
        self.assertEqual(duration(0, 100)("15"), 15.0)
        self.assertEqual(duration(0, 100)("0.5"), 0.5)
        self.assertEqual(size(0, 2**30)("1048576"), 2**20)

    def test_durations_have_units(self) -> None:
        """From milliseconds to days, in either case, with or without a blank."""
        kind = duration(0, 10**9)
        for text, seconds in (
            ("500ms", 0.5),
            ("15s", 15),
            ("2min", 120),
            ("2m", 120),
            ("1.5h", 5400),
            ("1d", 86400),
            ("1 D", 86400),
        ):
            self.assertAlmostEqual(kind(text), seconds)

    def test_sizes_have_units(self) -> None:
        """Decimal ones of the SI, binary ones of the IEC."""
        kind = size(0, 2**50)
        for text, number in (
            ("1MB", 10**6),
            ("1MiB", 2**20),
            ("64kB", 64000),
            ("64 KiB", 65536),
            ("1.5GiB", 3 * 2**29),
            ("12B", 12),
        ):
            self.assertEqual(kind(text), number)
            self.assertIsInstance(kind(text), int)

    def test_thousands_may_be_separated(self) -> None:
        """By commas or underscores."""
        self.assertEqual(count(1, 10**7)("100,000"), 100000)
        self.assertEqual(count(1, 10**7)("100_000"), 100000)

    def test_bounds_are_inclusive(self) -> None:
        """And what is beyond them is told in the same units."""
        kind = duration(1, 3600)
        self.assertEqual((kind("1"), kind("1h")), (1.0, 3600.0))
        self.assertEqual(self.refused(kind, "0.9"), "'0.9' is not from 1s to 1h")
        self.assertEqual(self.refused(kind, "61min"), "'61min' is not from 1s to 1h")
        self.assertEqual(
            self.refused(size(65536, 2**40), "65535"), "'65535' is not from 64KiB to 1TiB"
        )

    def test_what_is_no_number_is_refused(self) -> None:
        """With an example.  A size is not a time, and `float` would take some of these."""
        for text in ("", "nan", "inf", "-1", "1e3", "1MB", "1 2", "s", "0x10", "1d2h"):
            self.assertIn("such as 15s, 1.5h or 1d", self.refused(duration(0, 10**9), text))
        self.assertEqual(
            self.refused(size(0, 10**9), "lots"), "'lots' is not a size, such as 64KiB or 1MB"
        )

    def test_a_whole_number_is_not_rounded(self) -> None:
        """Half an event cannot be kept."""
        self.assertEqual(self.refused(count(1, 10), "1.5"), "'1.5' is not a whole number")

    @given(st.integers(min_value=0, max_value=2**40))
    def test_what_is_written_can_be_read(self, number: int) -> None:
        """As the same number, of each kind."""
        for kind in (count(0, 2**40), size(0, 2**40), duration(0, 2**40)):
            self.assertEqual(kind(kind.text(number)), number)

    def test_defaults_are_written_as_people_do(self) -> None:
        """In the largest unit that leaves a whole number."""
        self.assertEqual(duration(0, 10**9).text(86400), "1d")
        self.assertEqual(duration(0, 10**9).text(75), "75s")
        self.assertEqual(duration(0, 10**9).text(0.1), "0.1s")
        self.assertEqual(size(0, 2**40).text(2**20), "1MiB")
        self.assertEqual(count(0, 10**7).text(100000), "100,000")
