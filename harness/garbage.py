"""Garbage collection in tests."""

from __future__ import annotations

import gc

from twisted.trial.unittest import SynchronousTestCase


def collect_only_new_objects(test: SynchronousTestCase) -> None:
    """Have ``gc`` look only at what is made from here on, until the test ends.

    A collection of all objects takes 100 ms, as the tests have many modules loaded.
    """
    gc.freeze()
    test.addCleanup(gc.unfreeze)
