"""How workers share connections: the counts."""

from __future__ import annotations

import os

from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.server.accept import ConnectionCounts


class CountTests(SynchronousTestCase):
    """The arithmetic."""

    def setUp(self) -> None:
        self.parent = ConnectionCounts.for_workers(3)
        self.addCleanup(self.parent.close)
        self.workers = [self.mapped(number) for number in (1, 2, 3)]

    def mapped(self, number: int) -> ConnectionCounts:
        """Map the table as another process does, by its descriptor."""
        counts = ConnectionCounts(os.fdopen(os.dup(self.parent.fileno()), "r+b"), number)
        self.addCleanup(counts.close)
        return counts

    def count(self, *counts: int) -> None:
        for worker, count in zip(self.workers, counts, strict=True):
            worker.serve(lambda count=count: count)

    def shares(self, waiting: int) -> list[int]:
        return [worker.fair_share(waiting) for worker in self.workers]

    def test_all_workers_get_the_same_number(self) -> None:
        """A worker with more than its share has to give way."""
        self.count(5, 5, 5)
        self.assertEqual(self.shares(9), [3, 3, 3])
        self.count(10, 4, 0)
        self.assertEqual(self.shares(1), [-5, 1, 5])
        self.assertEqual(self.shares(16), [0, 6, 10])

    def test_a_worker_counts_its_clients_at_that_moment(self) -> None:
        """Those that have left since its last count are not in its way."""
        connected = [0]
        self.count(9, 3, 3)
        self.workers[0].serve(lambda: connected[-1])
        connected.append(9)
        self.assertEqual(self.shares(3), [-3, 3, 3])
        connected.append(0)
        self.assertEqual(self.shares(3), [3, 0, 0])

    def test_a_rest_is_for_the_first_worker_that_comes(self) -> None:
        """One client cannot be divided by three."""
        self.count(0, 0, 0)
        self.assertEqual(self.shares(1), [1, 1, 1])
        self.count(1, 0, 0)
        self.assertEqual(self.shares(1), [0, 1, 1])

    def test_a_worker_that_does_not_serve_is_not_counted(self) -> None:
        """It died, or it stops, or its store is not open yet."""
        self.count(4, 0, 2)
        self.workers[1].leave()
        self.assertEqual(self.shares(2), [0, 0, 2])
        self.assertEqual([worker.fallback_share(5) for worker in self.workers], [3, 0, 3])

    def test_without_a_worker_that_serves_any_worker_accepts_all(self) -> None:
        """It tells the clients so."""
        self.assertEqual(self.shares(7), [7, 7, 7])
        self.assertEqual(self.workers[0].fallback_share(7), 7)

    def test_the_parent_clears_the_count_of_a_dead_worker(self) -> None:
        """All processes have the same table."""
        self.count(4, 0, 2)
        self.parent.clear(3)
        self.assertEqual([worker.fair_share(2) for worker in self.workers[:2]], [-1, 3])
