"""What a store promises about tasks and callback URLs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from twisted.internet.defer import gatherResults
from zope.interface.verify import verifyObject

from asyncplumber.event import Cursor
from asyncplumber.interfaces import (
    REMEMBERED_URL,
    CallbackUrl,
    Claim,
    ICallbackUrls,
    ITasks,
)
from asyncplumber.task import FORMER_RUNS, NEVER, Task, TaskState
from tests.contracts import ODD_ACCOUNTS, StoreContract, append, draft, drafts

RUNNING, COMPLETED, LOST = TaskState.RUNNING, TaskState.COMPLETED, TaskState.LOST
PAYLOAD = b'"data":{"total":7}'


def timeless(task: Task) -> Task:
    """Return a row without the times that a store puts in."""
    return replace(
        task, submitted_at=0.0, updated_at=0.0, started_at=None, ended_at=None, deadline=None
    )


class TaskCase(StoreContract):
    """What the suites of tasks share."""

    async def setUp(self) -> None:
        await super().setUp()
        self.tasks = self.store.tasks

    async def pass_time(self, seconds: float) -> None:
        """Let so many seconds pass, by the store's clock."""
        self.reactor.advance(seconds)

    async def begun(self, key: str = "k", run: str = "r", **fields: Any) -> Task:
        """Return the row of a run that a claim has begun."""
        claimed = await self.tasks.claim(Claim("a", key, run, **fields))
        self.assertTrue(claimed.began)
        task: Task = claimed.task
        return task

    async def changed(self, task: Task, changes: Any = (), **options: Any) -> Task:
        """Return the row after a change that is the first."""
        row: Task | None = await self.tasks.change(task, dict(changes), **options)
        assert row is not None
        self.assertEqual(await self.tasks.get(task.account, task.key), row)
        return row

    async def ended(self, task: Task, state: TaskState = COMPLETED, **changes: Any) -> Task:
        """Return the row after its end was announced."""
        fields = {"state": state, "result": PAYLOAD, "is_announced": True, **changes}
        return await self.changed(task, fields)

    def keys(self, rows: list[Task]) -> list[str]:
        return [row.key for row in rows]

    def near(self, time: float | None, expected: float, delta: float = 0.0021) -> None:
        """Check a time; a store may round it to milliseconds."""
        assert time is not None
        self.assertLess(abs(time - expected), delta)

    def same(self, rows: list[Task], expected: list[Task]) -> None:
        """Check rows, but not their times: `pass_time` may change these."""
        self.assertEqual([*map(timeless, rows)], [*map(timeless, expected)])


class ClaimContract(TaskCase):
    """What `ITasks.claim` and `ITasks.get` promise."""

    async def test_it_provides_the_interface_of_tasks(self) -> None:
        """Names and signatures are those of the interface."""
        verifyObject(ITasks, self.tasks)

    async def test_nobody_knows_a_task_that_was_never_claimed(self) -> None:
        """Neither it nor its account."""
        self.assertIsNone(await self.tasks.get("a", "k"))
        self.assertEqual(await self.tasks.of_account("a", 10), [])

    async def test_a_claim_begins_a_run(self) -> None:
        """All that it says is in the row; all else is as `Task` says of a new one."""
        claim = Claim("a", "k", "r", 60.0, 20.0, b"in", "text/x", b"digest")
        task, began = await self.tasks.claim(claim)
        self.assertTrue(began)
        self.near(task.deadline, task.submitted_at + 60)
        self.assertEqual(
            task,
            Task(
                "a",
                "k",
                "r",
                TaskState.SUBMITTED,
                task.submitted_at,
                task.submitted_at,
                deadline=task.deadline,
                patience=20.0,
                digest=b"digest",
                input=b"in",
                input_type="text/x",
            ),
        )
        self.assertEqual(await self.tasks.get("a", "k"), task)

    async def test_a_run_may_have_no_deadline_and_no_input(self) -> None:
        """An empty input is one."""
        task = await self.begun(deadline_in=NEVER)
        self.assertEqual((task.deadline, task.input), (None, None))
        self.assertEqual((await self.begun("empty", input=b"")).input, b"")

    async def test_a_second_claim_joins(self) -> None:
        """Whatever it says, and however far the run is."""
        task = await self.begun(input=b"in")
        self.assertEqual(await self.tasks.claim(Claim("a", "k", "other")), (task, False))
        task = await self.changed(task, {"state": RUNNING})
        other = (await self.opened()).tasks
        self.assertEqual(await other.claim(Claim("a", "k", "r", input=b"x")), (task, False))

    async def test_an_end_that_is_not_announced_is_never_replaced(self) -> None:
        """The row is all that is known of it."""
        task = await self.changed(await self.begun(), {"state": COMPLETED})
        self.assertEqual(await self.tasks.claim(Claim("a", "k", "next")), (task, False))
        await self.changed(task, {"is_announced": True})
        self.assertTrue((await self.tasks.claim(Claim("a", "k", "next"))).began)

    async def test_a_run_that_has_ended_does_not_begin_again(self) -> None:
        """Neither the newest one nor a former one: a claim may come late."""
        await self.ended(await self.begun(run="r1"))
        task = await self.ended(await self.begun(run="r2"))
        for run in ("r1", "r2"):
            self.assertEqual(await self.tasks.claim(Claim("a", "k", run)), (task, False))
        await self.begun(run="r3")

    async def test_the_next_run_owes_nothing_to_the_one_before(self) -> None:
        """Except for the ids of those before it: the newest ones."""
        everything: dict[str, Any] = {
            "progress": PAYLOAD,
            "progressed_at": 5.0,
            "error": b"{}",
            "result_type": "text/plain",
            "cursor": Cursor("e", 5),
            "is_late": True,
            "is_cancel_requested": True,
            "attempts": 3,
            "end_id": "end",
        }
        for number in range(FORMER_RUNS + 2):
            await self.pass_time(1)
            task = await self.begun(run=f"r{number}", input=b"in", input_type="t", digest=b"d")
            former = tuple(
                f"r{n}" for n in range(number - 1, max(-1, number - 1 - FORMER_RUNS), -1)
            )
            self.assertEqual(task.former, former)
            self.assertEqual(
                task,
                Task(
                    "a",
                    "k",
                    f"r{number}",
                    TaskState.SUBMITTED,
                    task.submitted_at,
                    task.submitted_at,
                    deadline=task.deadline,
                    digest=b"d",
                    input=b"in",
                    input_type="t",
                    former=former,
                ),
            )
            task = await self.changed(task, {"state": RUNNING})
            await self.ended(task, **everything)

    async def test_odd_names_are_kept_apart(self) -> None:
        """In each place, also where a pair of names would be the same text when joined."""
        names = [*ODD_ACCOUNTS, "$run", "$$ROOT"]
        places = [(account, "k") for account in names] + [("a", key) for key in names]
        places += [("a b", "c"), ("a", "b c"), ("x", "x:y"), ("x:x", "y")]
        places = list(dict.fromkeys(places))
        for account, key in places:
            claim = Claim(account, key, f"{key} of {account}", input_type=key, digest=b"$x")
            self.assertTrue((await self.tasks.claim(claim)).began, (account, key))
        for account, key in places:
            row = await self.tasks.get(account, key)
            self.assertEqual(
                (row.account, row.key, row.run, row.input_type),
                (account, key, f"{key} of {account}", key),
            )
        ours = [account for account, _ in places].count("a")
        self.assertEqual(len(await self.tasks.of_account("a", 100)), ours)

    async def test_of_many_claims_at_once_one_begins(self) -> None:
        """At several instances, of a new task and of one that has ended."""
        stores = [self.store, *[await self.opened() for _ in range(2)]]
        for turn in range(5):
            claims = [Claim("a", "k", f"{turn}.{n}") for n in range(12)]
            answers = await gatherResults(
                [stores[n % 3].tasks.claim(claim) for n, claim in enumerate(claims)]
            )
            self.assertEqual([began for _, began in answers].count(True), 1)
            self.assertEqual(len({task.run for task, _ in answers}), 1)
            [begun] = [task for task, began in answers if began]
            await self.ended(begun)

    async def test_of_claims_for_the_same_run_one_begins_it(self) -> None:
        """Two reports of a run that nobody knows may come at once."""
        other = await self.opened()
        answers = await gatherResults(
            [
                store.tasks.claim(Claim("a", "k", "r"))
                for _ in range(3)
                for store in (self.store, other)
            ]
        )
        self.assertEqual([began for _, began in answers].count(True), 1)

    async def test_tasks_survive_a_restart(self) -> None:
        """With all that is known of them."""
        live = await self.changed(await self.begun("live", input=b"in"), {"progress": PAYLOAD})
        task = await self.ended(await self.begun("ended"), cursor=Cursor("e", 7), end_id="x")
        await self.store.stop()
        again = (await self.opened()).tasks
        self.assertEqual(await again.get("a", "live"), live)
        self.assertEqual(await again.get("a", "ended"), task)
        self.assertEqual(await again.claim(Claim("a", "live", "s")), (live, False))

    async def test_large_payloads_are_kept(self) -> None:
        """Of input and result, 2 MB each; they do not harm their neighbours."""
        large = b"x" * 2_000_000
        task = await self.begun(input=large)
        self.assertEqual((await self.tasks.get("a", "k")).input, large)
        await gatherResults(
            [self.tasks.claim(Claim("a", f"{n}", "r", input=b"")) for n in range(3)]
        )
        task = await self.changed(task, {"state": COMPLETED, "result": large})
        self.assertEqual((task.input, task.result), (None, large))


class ChangeContract(TaskCase):
    """What `ITasks.change` promises."""

    async def test_a_change_changes_what_it_names(self) -> None:
        """Any attribute, to a value and to None; ``updated_at`` becomes now."""
        task = await self.begun(input=b"in")
        await self.pass_time(5)
        changes: dict[str, Any] = {
            "patience": 5.0,
            "progress": PAYLOAD,
            "progressed_at": 12.5,
            "result": PAYLOAD,
            "result_type": "$x",
            "error": b'{"type":"$y"}',
            "cursor": Cursor("e", 5),
            "is_announced": True,
            "is_late": True,
            "is_cancel_requested": True,
            "digest": b"other",
            "input": b"$$ROOT",
            "input_type": "$z",
            "attempts": 2,
            "former": ("$r", "s t"),
            "end_id": "$id",
        }
        row = await self.changed(task, changes)
        self.near(row.updated_at - row.submitted_at, 5, 2)
        self.same([row], [replace(task, **changes)])
        nothing: dict[str, Any] = dict.fromkeys(("progress", "result", "error", "cursor", "input"))
        cleared = await self.changed(row, nothing)
        self.assertEqual(cleared, replace(row, updated_at=cleared.updated_at, **nothing))

    async def test_a_report_is_taken_for_the_run_and_the_state_it_saw_only(self) -> None:
        """Another run, another state, or no such task: None, and nothing is changed."""
        task = await self.begun()
        for other in (
            replace(task, run="other"),
            replace(task, state=RUNNING),
            replace(task, key="none"),
        ):
            self.assertIsNone(await self.tasks.change(other, {"state": COMPLETED}))
        self.assertEqual(await self.tasks.get("a", "k"), task)
        self.assertIsNone(await self.tasks.get("a", "none"))

    async def test_the_first_report_of_work_says_when_it_began(self) -> None:
        """A later one leaves that as it is."""
        task = await self.begun()
        await self.pass_time(5)
        running = await self.changed(task, {"state": RUNNING})
        self.assertEqual(running.started_at, running.updated_at)
        await self.pass_time(5)
        again = await self.changed(running, {"state": RUNNING})
        assert again.started_at is not None
        self.near(again.updated_at - again.started_at, 5, 2)
        self.near(again.updated_at - again.submitted_at, 10, 3)

    async def test_an_end_takes_deadline_and_input_away(self) -> None:
        """And says when; the late end of a lost run says when it came."""
        for state in (COMPLETED, TaskState.FAILED, TaskState.CANCELED, LOST):
            task = await self.begun(state.value, input=b"in")
            row = await self.changed(task, {"state": state})
            self.assertEqual((row.ended_at, row.deadline, row.input), (row.updated_at, None, None))
            self.assertTrue(row.is_done)
        await self.pass_time(5)
        late = await self.changed(row, {"state": COMPLETED, "is_late": True, "result": PAYLOAD})
        self.assertEqual(late.ended_at, late.updated_at)
        self.near(late.updated_at - late.submitted_at, 5, 2)

    async def test_a_deadline_is_moved_taken_away_or_left(self) -> None:
        """It counts from now."""
        task = await self.begun(deadline_in=60.0)
        await self.pass_time(10)
        self.assertEqual(
            (await self.changed(task, {"attempts": 1})).deadline,
            (await self.tasks.get("a", "k")).deadline,
        )
        row = await self.changed(task, deadline_in=60.0)
        self.near(row.deadline, row.updated_at + 60)
        self.assertIsNone((await self.changed(row, deadline_in=NEVER)).deadline)
        row = await self.changed(row, deadline_in=0.5)
        self.near(row.deadline, row.updated_at + 0.5)

    async def test_of_two_progresses_that_replace_the_same_row_one_is_the_first(self) -> None:
        """The other reads the row again: what it knows of it may be older than the progress."""
        known = await self.changed(await self.begun(), {"state": RUNNING})
        stores = [self.store, await self.opened()]
        changes = [
            store.tasks.change(known, {"progress": b"%d" % n, "progressed_at": 12.1 + n})
            for n, store in enumerate(stores)
        ]
        rows = [row for row in [await change for change in changes] if row is not None]
        self.assertEqual([await self.tasks.get("a", "k")], rows)
        newer = await self.changed(rows[0], {"progress": b"3", "progressed_at": 15.3})
        self.assertIsNone(await self.tasks.change(rows[0], {"progressed_at": 15.4}))
        await self.changed(rows[0], {"is_cancel_requested": True})  # it does not replace that
        await self.changed(newer, {"progressed_at": 15.3})

    async def test_a_change_of_what_is_overdue_spares_what_is_not(self) -> None:
        """A beat may come between the look at a row and its change."""
        task = await self.begun(deadline_in=10.0)
        never = await self.begun("never", deadline_in=NEVER)
        await self.pass_time(11)
        beaten = await self.changed(task, deadline_in=10.0)
        for row in (task, never):
            self.assertIsNone(await self.tasks.change(row, {"state": LOST}, overdue_only=True))
        self.assertEqual(await self.tasks.get("a", "k"), beaten)
        await self.pass_time(11)
        lost = await self.changed(task, {"state": LOST}, overdue_only=True)
        self.assertIsNone(await self.tasks.change(lost, {"attempts": 1}, overdue_only=True))

    async def test_of_many_ends_at_once_one_is_the_end(self) -> None:
        """Whatever they are, and at whichever instance."""
        stores = [self.store, *[await self.opened() for _ in range(2)]]
        ends = [COMPLETED, TaskState.FAILED, TaskState.CANCELED, LOST]
        for turn in range(5):
            task = await self.begun(f"{turn}")
            rows = await gatherResults(
                [
                    stores[n % 3].tasks.change(task, {"state": ends[n % 4], "end_id": f"{n}"})
                    for n in range(12)
                ]
            )
            first = [row for row in rows if row is not None]
            self.assertEqual(len(first), 1)
            self.assertEqual(await self.tasks.get("a", f"{turn}"), first[0])


class SweepContract(TaskCase):
    """What `ITasks` promises to a sweeper."""

    async def test_what_is_overdue_is_found(self) -> None:
        """The oldest deadline first; neither the ended, the renewed nor what has no deadline."""
        for key, seconds in (("b", 20.0), ("a", 10.0), ("later", 60.0), ("never", NEVER)):
            await self.begun(key, deadline_in=seconds)
        await self.ended(await self.begun("ended", deadline_in=5.0))
        renewed = await self.begun("renewed", deadline_in=5.0)
        self.assertEqual(await self.tasks.overdue(10), [])
        await self.pass_time(9)
        await self.changed(renewed, deadline_in=30.0)
        self.assertEqual(await self.tasks.overdue(10), [])
        await self.pass_time(2)
        self.assertEqual(self.keys(await self.tasks.overdue(10)), ["a"])
        await self.pass_time(10)
        other = (await self.opened()).tasks
        found = await other.overdue(10)
        self.assertEqual(self.keys(found), ["a", "b"])
        self.assertEqual(found[0], await self.tasks.get("a", "a"))
        self.assertEqual(self.keys(await self.tasks.overdue(1)), ["a"])

    async def test_a_run_that_nobody_dispatches_is_handed_to_another(self) -> None:
        """After its lease, and while it has its input."""
        task = await self.begun(input=b"in", lease=10.0)
        await self.begun("reported")
        self.assertEqual(await self.tasks.undispatched(10, 10.0), [])
        await self.pass_time(11)
        other = (await self.opened()).tasks
        self.same(await other.undispatched(10, 10.0), [task])
        self.assertEqual(await self.tasks.undispatched(10, 10.0), [])
        await self.pass_time(11)
        self.assertEqual(self.keys(await self.tasks.undispatched(10, 10.0)), ["k"])
        await self.changed(task, {"input": None})
        await self.pass_time(11)
        self.assertEqual(await self.tasks.undispatched(10, 10.0), [])

    async def test_whoever_dispatches_may_renew_the_lease(self) -> None:
        """With any change; a change that says nothing of it leaves it."""
        task = await self.begun(input=b"", lease=10.0)
        await self.pass_time(8)
        await self.changed(task, {"attempts": 1}, lease=10.0)
        await self.pass_time(8)
        await self.changed(task, {"attempts": 2})
        self.assertEqual(await self.tasks.undispatched(10, 10.0), [])
        await self.pass_time(3)
        self.assertEqual(self.keys(await self.tasks.undispatched(10, 10.0)), ["k"])
        running = await self.changed(task, {"state": RUNNING, "input": None}, lease=1.0)
        await self.pass_time(11)
        self.assertEqual(await self.tasks.undispatched(10, 10.0), [])
        await self.ended(running, LOST)
        await self.pass_time(11)
        self.assertEqual(await self.tasks.undispatched(10, 10.0), [])

    async def test_instances_that_ask_at_once_dispatch_different_runs(self) -> None:
        """Each run once, and no more than they ask for."""
        stores = [self.store, *[await self.opened() for _ in range(2)]]
        for n in range(20):
            await self.begun(f"{n}", input=b"in", lease=1.0)
        await self.pass_time(2)
        found = await gatherResults([store.tasks.undispatched(5, 60.0) for store in stores])
        self.assertEqual([len(rows) for rows in found], [5, 5, 5])
        self.assertEqual(len({row.key for rows in found for row in rows}), 15)

    async def test_what_nobody_announced_is_found(self) -> None:
        """Some seconds after its last change, the oldest first; live or ended."""
        submitted = await self.begun("submitted")
        await self.pass_time(1)
        ended = await self.changed(await self.begun("ended"), {"state": COMPLETED})
        await self.ended(await self.begun("announced"))
        self.assertEqual(await self.tasks.unannounced(10, 5.0), [])
        await self.pass_time(5)
        other = (await self.opened()).tasks
        self.same(await other.unannounced(10, 5.0), [submitted, ended])
        self.same(await self.tasks.unannounced(1, 5.0), [submitted])
        await self.changed(submitted, {"attempts": 1})
        self.same(await self.tasks.unannounced(10, 5.0), [ended])
        await self.changed(ended, {"is_announced": True})
        await self.pass_time(6)
        self.assertEqual(self.keys(await self.tasks.unannounced(10, 5.0)), ["submitted"])

    async def test_nobody_is_lost_because_the_servers_were_away(self) -> None:
        """A gap is added once, by one of those who find it, and to all deadlines."""
        stores = [self.store, *[await self.opened() for _ in range(2)]]
        await self.begun("k", deadline_in=60.0)
        await self.begun("never", deadline_in=NEVER)
        await self.ended(await self.begun("ended"))
        for store in stores:
            self.assertEqual(await store.tasks.extend(5.0, 30.0), 0)
        await self.pass_time(205)
        before = await self.tasks.get("a", "k")
        moved = await gatherResults([store.tasks.extend(5.0, 30.0) for store in stores])
        self.assertEqual([each > 0 for each in moved].count(True), 1)
        self.near(max(moved), 200, 2)
        self.assertEqual(sorted(moved)[:2], [0, 0])
        after = await self.tasks.get("a", "k")
        self.near(after.deadline, before.deadline + max(moved))
        self.assertEqual(after, replace(before, deadline=after.deadline))
        self.assertEqual(await self.tasks.overdue(10), [])
        self.assertIsNone((await self.tasks.get("a", "never")).deadline)
        self.assertIsNone((await self.tasks.get("a", "ended")).deadline)
        self.assertEqual(await self.tasks.extend(5.0, 30.0), 0)
        await self.pass_time(52)
        self.assertEqual(await self.tasks.overdue(10), [])
        await self.tasks.extend(5.0, 60.0)
        await self.pass_time(10)
        self.assertEqual(self.keys(await self.tasks.overdue(10)), ["k"])

    async def test_a_short_pause_is_no_gap(self) -> None:
        """Nor is the time before the first instance was there."""
        task = await self.begun(deadline_in=60.0)
        await self.pass_time(500)
        self.assertEqual(await self.tasks.extend(5.0, 30.0), 0)
        await self.pass_time(34)
        self.assertEqual(await self.tasks.extend(5.0, 30.0), 0)
        await self.pass_time(34)
        self.assertEqual(await (await self.opened()).tasks.extend(5.0, 30.0), 0)
        self.assertEqual(self.keys(await self.tasks.overdue(10)), [task.key])

    async def test_two_gaps_are_both_added(self) -> None:
        """Each once."""
        task = await self.begun(deadline_in=60.0)
        await self.tasks.extend(5.0, 30.0)
        for turn in range(1, 3):
            await self.pass_time(105)
            self.near(await self.tasks.extend(5.0, 30.0), 100, 1)
            row = await self.tasks.get("a", "k")
            self.near(row.deadline - row.submitted_at, 60 + 100 * turn, 1)
        self.assertEqual(row.run, task.run)

    async def test_a_clock_that_was_set_back_takes_the_deadlines_with_it(self) -> None:
        """Else a run would be lost an hour late, and not be dispatched for an hour."""
        await self.tasks.extend(5.0, 30.0)
        await self.begun(deadline_in=60.0, input=b"in", lease=10.0)
        await self.pass_time(-3600)
        self.near(await self.tasks.extend(5.0, 30.0), -3600, 1)
        self.assertEqual(await self.tasks.overdue(10), [])
        await self.pass_time(12)
        self.assertEqual(self.keys(await self.tasks.undispatched(10, 10.0)), ["k"])
        await self.pass_time(50)
        self.assertEqual(self.keys(await self.tasks.overdue(10)), ["k"])

    async def test_old_ends_are_forgotten(self) -> None:
        """Those that are announced, after their time; some at a time."""
        for key in ("1", "2", "3"):
            await self.ended(await self.begun(key))
        await self.begun("live", deadline_in=1.0)
        await self.changed(await self.begun("unannounced"), {"state": COMPLETED})
        again = await self.begun("again")
        await self.pass_time(50)
        await self.ended(again)
        self.assertEqual(await self.tasks.forget(60.0, 10), 0)
        await self.pass_time(11)
        other = (await self.opened()).tasks
        self.assertEqual(await other.forget(60.0, 2), 2)
        self.assertEqual(await self.tasks.forget(60.0, 2), 1)
        self.assertEqual(await self.tasks.forget(60.0, 2), 0)
        rows = await self.tasks.of_account("a", 10)
        self.assertEqual(set(self.keys(rows)), {"live", "unannounced", "again"})

    async def test_the_next_run_of_an_old_task_is_not_forgotten(self) -> None:
        """It is live, however old the one before is."""
        await self.ended(await self.begun())
        await self.pass_time(100)
        await self.begun(run="next")
        self.assertEqual(await self.tasks.forget(60.0, 10), 0)


class TaskListContract(TaskCase):
    """What `ITasks.of_account` promises."""

    async def test_the_live_ones_come_first_and_in_each_part_the_newest(self) -> None:
        """Without their inputs; those of others are not shown."""
        rows = {}
        for key in ("1", "2", "3", "4"):
            rows[key] = await self.begun(key, input=b"in")
            await self.pass_time(1)
        await self.tasks.claim(Claim("b", "5", "r"))
        for key in ("3", "1"):
            rows[key] = await self.ended(rows[key])
        rows["2"] = await self.changed(rows["2"], {"progress": PAYLOAD})
        listed = await self.tasks.of_account("a", 10)
        self.same(listed, [replace(rows[key], input=None) for key in ("4", "2", "3", "1")])
        self.assertEqual(self.keys(await self.tasks.of_account("a", 3)), ["4", "2", "3"])
        live = await self.tasks.of_account("a", 10, live_only=True)
        self.assertEqual(self.keys(live), ["4", "2"])
        self.assertEqual(self.keys(await self.tasks.of_account("a", 1, live_only=True)), ["4"])

    async def test_tasks_of_the_same_moment_are_in_the_order_of_their_keys(self) -> None:
        """More than one page of them; no more than are asked for."""
        keys = [f"{n:03}" for n in range(230)]
        await gatherResults([self.tasks.claim(Claim("a", key, "r")) for key in reversed(keys)])
        rows = await self.tasks.of_account("a", 1000)
        self.assertEqual(sorted(self.keys(rows)), keys)
        self.assertEqual(rows, sorted(rows, key=lambda row: (-row.submitted_at, row.key)))
        self.assertEqual(await self.tasks.of_account("a", 210), rows[:210])


class TaskEpochContract(TaskCase):
    """What becomes of tasks when `IHistory.begin_epoch` is called."""

    async def test_tasks_follow_into_a_new_epoch(self) -> None:
        """Their cursors still name the same events."""
        await append(self.store, drafts(3))
        await append(self.store, [draft("b")])
        epoch = (await self.history.ensure("a")).epoch
        task = await self.begun()
        await self.changed(task, {"cursor": Cursor(epoch, 2), "is_announced": True})
        none = await self.begun("none")
        new = await self.history.begin_epoch()
        row = await self.tasks.get("a", "k")
        self.assertEqual((row.cursor, row.is_announced), (Cursor(new, 2), True))
        self.assertEqual(await self.tasks.get("a", "none"), none)
        newer = await self.history.begin_epoch()
        self.assertEqual((await self.tasks.get("a", "k")).cursor, Cursor(newer, 2))

    async def test_a_row_whose_event_is_in_no_backup_is_announced_again(self) -> None:
        """Its number will be that of another event; a result that is nowhere else stays lost."""
        await append(self.store, drafts(3))
        epoch = (await self.history.ensure("a")).epoch
        beyond: dict[str, Any] = {"cursor": Cursor(epoch, 4), "is_announced": True}
        await self.changed(await self.begun("live"), beyond)
        await self.ended(await self.begun("result"), **beyond)
        error = {"state": TaskState.FAILED, "error": b"{}"}
        await self.changed(await self.begun("error"), {**beyond, **error})
        await self.ended(await self.begun("large"), **{**beyond, "result": None})
        elsewhere = {**beyond, "cursor": Cursor("other", 1)}
        await self.changed(await self.begun("elsewhere"), elsewhere)
        await self.history.begin_epoch()
        rows = await self.tasks.of_account("a", 10)
        self.assertEqual({row.cursor for row in rows}, {None})
        self.assertEqual({row.key for row in rows if row.is_announced}, {"large"})
        self.assertEqual(len(await self.tasks.unannounced(10, 0.0)), 4)


class CallbackUrlContract(StoreContract):
    """What `ICallbackUrls` promises."""

    async def setUp(self) -> None:
        await super().setUp()
        self.urls = self.store.callback_urls

    def callback_url(self, id: str = "i", expires_in: float = 60.0, **fields: Any) -> CallbackUrl:
        """Return a callback URL of account a."""
        fields = {"account": "a", **fields}
        account = fields.pop("account")
        digest = id.encode().ljust(32, b"\0")
        expires_at = self.reactor.seconds() + expires_in
        return CallbackUrl(digest, account, expires_at, id=id, **fields)

    async def minted(self, id: str = "i", expires_in: float = 60.0, **fields: Any) -> CallbackUrl:
        url = self.callback_url(id, expires_in, **fields)
        self.assertIsNone(await self.urls.add(url))
        return url

    async def test_it_provides_the_interface_of_callback_urls(self) -> None:
        """Names and signatures are those of the interface."""
        verifyObject(ICallbackUrls, self.urls)

    async def test_what_was_added_is_found(self) -> None:
        """As it was, at any instance, and after a restart; nothing else is."""
        plain = await self.minted("plain")
        full = await self.minted(
            "full",
            task="$t",
            run="r",
            ends=False,
            scheme="github",
            secret="$ä",
            pointer="/status",
            type_prefix="github.",
        )
        other = (await self.opened()).callback_urls
        for urls in (self.urls, other):
            self.assertEqual(await urls.get(plain.digest), plain)
            self.assertEqual(await urls.get(full.digest), full)
            self.assertIsNone(await urls.get(b"\xff" * 32))
        await self.store.stop()
        again = (await self.opened()).callback_urls
        self.assertEqual(await again.get(full.digest), full)

    async def test_no_text_of_it_shows_what_is_secret(self) -> None:
        """It may be in a traceback."""
        url = self.callback_url(secret="hush")
        for text in (repr(url), str(url), f"{url!r}"):
            self.assertNotIn("hush", text)
            self.assertNotIn(repr(url.digest), text)

    async def test_a_call_that_is_repeated_changes_nothing(self) -> None:
        """Its answer may have been lost."""
        url = await self.minted()
        await self.urls.add(url)
        self.assertEqual(await self.urls.of_account("a", 10), [url])

    async def test_those_of_an_account_are_listed(self) -> None:
        """In the order of their ids, and without those that have expired."""
        for id in ("c", "a", "b"):
            await self.minted(id, 60 if id != "b" else 10)
        await self.minted("other", account="b")
        self.assertEqual([url.id for url in await self.urls.of_account("a", 10)], ["a", "b", "c"])
        self.assertEqual([url.id for url in await self.urls.of_account("a", 2)], ["a", "b"])
        self.reactor.advance(11)
        self.assertEqual([url.id for url in await self.urls.of_account("a", 10)], ["a", "c"])
        self.assertEqual(await self.urls.of_account("none", 10), [])

    async def test_one_is_removed_by_its_account(self) -> None:
        """Once; nobody else can, and the others stay."""
        url, stays = await self.minted(), await self.minted("j")
        other = (await self.opened()).callback_urls
        self.assertFalse(await other.remove("b", "i"))
        self.assertFalse(await other.remove("a", "k"))
        self.assertTrue(await other.remove("a", "i"))
        self.assertFalse(await self.urls.remove("a", "i"))
        self.assertIsNone(await self.urls.get(url.digest))
        self.assertEqual(await self.urls.get(stays.digest), stays)

    async def test_those_of_a_run_expire_with_it(self) -> None:
        """Not later than they would; those of other runs, tasks and accounts are not concerned."""
        long = await self.minted("long", 1000, task="t", run="r")
        short = await self.minted("short", 10, task="t", run="r")
        others = [
            await self.minted("run", 1000, task="t", run="s"),
            await self.minted("task", 1000, task="u", run="r"),
            await self.minted("account", 1000, account="b", task="t", run="r"),
            await self.minted("plain", 1000),
        ]
        at = self.reactor.seconds() + 100.5
        self.assertIsNone(await self.urls.expire("a", "t", "r", at))
        self.assertEqual((await self.urls.get(long.digest)).expires_at, at)
        for url in (short, *others):
            self.assertEqual(await self.urls.get(url.digest), url)

    async def test_an_expired_one_is_known_for_a_day(self) -> None:
        """Then it is as if it had never been."""
        soon, later = await self.minted("soon", 10), await self.minted("later", 1000)
        never = await self.minted("never", 1e12)
        self.reactor.advance(REMEMBERED_URL)
        self.assertEqual(await self.urls.sweep(), 0)
        self.assertEqual(await self.urls.get(soon.digest), soon)
        self.reactor.advance(11)
        self.assertEqual([await self.urls.sweep() for _ in range(2)], [1, 0])
        self.assertIsNone(await self.urls.get(soon.digest))
        self.assertEqual(await self.urls.get(later.digest), later)
        self.assertEqual(await self.urls.of_account("a", 10), [never])

    async def test_one_that_was_shortened_is_swept_by_its_new_time(self) -> None:
        """It is forgotten a day after that."""
        await self.minted("i", 1e9, task="t", run="r")
        await self.urls.expire("a", "t", "r", self.reactor.seconds() + 1)
        self.reactor.advance(REMEMBERED_URL + 2)
        self.assertEqual(await self.urls.sweep(), 1)


class TaskContract(
    ClaimContract, ChangeContract, SweepContract, TaskListContract, CallbackUrlContract
):
    """All of them but `TaskEpochContract`, which needs a whole history as well."""
