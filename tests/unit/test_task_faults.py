"""
Whatever goes wrong, each run has one end, and all hear the same.

Instances crash between any two calls of the store, the store fails before or after it has done what
it was asked, runners die, stop and repeat their reports.  One world of some dozen runs follows from
each seed.  ``ASYNCPLUMBER_MORE=1`` runs more than 2,000 runs and prints the counts.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from gc import collect
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.event import Event
from asyncplumber.task import TaskState
from harness.task_world import World

MORE = bool(os.environ.get("ASYNCPLUMBER_MORE"))
SEEDS = 60 if MORE else 8
TASKS = 50  # that clients want in one world; some join a run, and some begin another


class Checked:
    """What must hold in a world at rest."""

    def __init__(self, test: SynchronousTestCase, world: World, seed: int) -> None:
        self._test, self._world, self._seed = test, world, seed
        self.by_run: dict[str, list[tuple[Event, dict[str, Any]]]] = defaultdict(list)
        for event in world.events:
            member = event.task
            assert member is not None
            self.by_run[member["run"]].append((event, member))

    def check(self) -> None:
        test, world = self._test, self._world
        test.assertTrue(world.is_at_rest, f"seed {self._seed}: somebody still waits")
        self.ends()
        self.rows()
        self.clients()
        self.reports()
        self.subscribers()

    def ends_of(self, run: str) -> list[dict[str, Any]]:
        return [member for _, member in self.by_run[run] if member["done"]]

    def ends(self) -> None:
        """Each run has one end, or is lost and then has one that is late."""
        for run, events in self.by_run.items():
            ends = self.ends_of(run)
            shape = [(each["state"] == "lost", bool(each.get("late"))) for each in ends]
            self._test.assertIn(
                shape,
                ([(False, False)], [(True, False)], [(True, False), (False, True)]),
                f"seed {self._seed}, run {run}: {[member for _, member in events]}",
            )
            begun = [member["state"] for _, member in events if not member["done"]]
            self._test.assertLessEqual(begun.count("submitted"), 1)

    def rows(self) -> None:
        """Each row tells the last end of its run, and that it is in the history."""
        for row in self._world.store.tasks._tasks.values():
            self._test.assertTrue(row.is_done and row.is_announced, f"seed {self._seed}: {row}")
            last = self.ends_of(row.run)[-1]
            self._test.assertEqual((row.state.value, row.is_late), (last["state"], "late" in last))
            self._test.assertIn(row.run, self.by_run)

    def clients(self) -> None:
        """What a client was told is an end that is in the history."""
        for outcome in self._world.outcomes:
            task = outcome.task
            told = {(end["state"], bool(end.get("late"))) for end in self.ends_of(task.run)}
            self._test.assertIn((task.state.value, task.is_late), told, f"seed {self._seed}")
            self._test.assertEqual(task.result is not None, task.state is TaskState.COMPLETED)
            self._test.assertEqual(task.error is None, task.state is TaskState.COMPLETED)

    def reports(self) -> None:
        """An end that was accepted is kept."""
        for report, reported in self._world.accepted:
            receipt = reported.receipt
            assert receipt is not None
            assert report.run is not None
            kept = [
                event
                for event, member in self.by_run[report.run]
                if member["state"] == report.state.value and str(event.cursor) == receipt.cursor
            ]
            self._test.assertEqual(len(kept), 1, f"seed {self._seed}: {report} {receipt}")

    def subscribers(self) -> None:
        """The subscribers of all instances hear what is in the history, in its order."""
        for instance in self._world.alive:
            self._test.assertEqual(
                [event.seq for event in instance.heard],
                [event.seq for event in self._world.events],
            )


class FaultTests(SynchronousTestCase):
    """Generated worlds."""

    def test_each_run_has_one_end_that_all_hear(self) -> None:
        counts: Counter[str] = Counter()
        for seed in range(SEEDS):
            world = World(seed, TASKS)
            world.run()
            checked = Checked(self, world, seed)
            checked.check()
            counts += world.counts
            counts["runs"] += len(checked.by_run)
            counts["clients"] += len(world.outcomes)
            counts["dispatches"] += sum(world.dispatches.values())
            for run in checked.by_run:
                ends = checked.ends_of(run)
                counts["ended " + " then late ".join(end["state"] for end in ends)] += 1
                members = [member["done"] for _, member in checked.by_run[run]]
                counts["progress behind an end"] += members != sorted(members)
        del world, checked
        collect()  # what the coroutines of dead instances log belongs to this test
        self.assertGreater(counts["runs"], SEEDS * TASKS // 2)
        for fault in ("crash before", "crash after", "failure before", "failure after"):
            self.assertGreater(sum(n for name, n in counts.items() if name.startswith(fault)), 0)
        if MORE:
            print()
            for name, count in sorted(counts.items()):
                print(f"{name:<50}{count:>8}")
