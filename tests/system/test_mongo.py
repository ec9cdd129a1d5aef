"""MongoDB keeps the contract, on a single server and on a replica set."""

from __future__ import annotations

import atexit
import time
from typing import Any

import pymongo
from pymongo.errors import AutoReconnect, OperationFailure
from twisted.internet.defer import gatherResults
from twisted.trial.unittest import TestCase

from asyncplumber.errors import Unavailable
from asyncplumber.event import Cursor, Instance, Stored
from asyncplumber.interfaces import LEASE
from asyncplumber.stores.mongo.account_writer import DELETE_DELAY
from asyncplumber.stores.mongo.store import PING_LIFETIME, MongoStore
from asyncplumber.stores.retention import Retention
from harness.cluster import until
from harness.mongod import Mongod, fresh_uri, with_database
from tests.contracts import (
    HistoryContract,
    NewEpochContract,
    RegistryContract,
    SecretContract,
    append,
    draft,
    drafts,
    seqs,
)
from tests.revocation_contracts import RevocationContract


class MongoTests(
    HistoryContract,
    NewEpochContract,
    RegistryContract,
    RevocationContract,
    SecretContract,
    TestCase,
):
    """A single server keeps the contract."""

    timeout = 60

    async def setUp(self) -> None:
        self.uri = self.database()
        self.client: Any = pymongo.MongoClient(self.uri)
        self.db = self.client.get_default_database()
        self.addCleanup(self.client.close)
        self.addCleanup(self.client.drop_database, self.db.name)
        await super().setUp()

    def database(self) -> str:
        return fresh_uri()

    def seconds(self) -> float:
        """The store's steady clock: it goes on, and the test sets it forward."""
        return self.reactor.seconds() + time.monotonic()

    def make(self, retention: Retention, lease: float) -> Any:
        return MongoStore(self.uri, retention, self.reactor, self.reactor, lease=lease, steady=self)

    async def rows(self) -> int:
        return int(self.db.accounts.count_documents({}))

    async def tickets(self) -> int:
        return int(self.db.tickets.count_documents({}))

    def date_back(self, seconds: float) -> None:
        """All epochs began so much earlier, by the server's clock."""
        change = {"began": {"$subtract": ["$began", int(seconds * 1000)]}}
        self.db.epochs.update_many({}, [{"$set": change}])

    async def test_a_client_that_has_seen_nothing_misses_nothing(self) -> None:
        """The place before the first event is known under all its former names."""
        cursors = []
        for _ in range(5):
            cursors.append((await self.history.ensure("a")).cursor)
            self.date_back(self.retention.renewal + 1)
        self.assertEqual(len(set(cursors)), 5)
        await self.check_that_nothing_is_missed(cursors)
        # As the server does after nearly a month.
        self.db.epochs.delete_one({"_id": cursors[0].epoch})
        self.assertEqual(await self.lost("a", cursors[0]), await self.history.ensure("a"))

    async def test_a_cursor_of_a_numbering_that_was_forgotten_is_refused(self) -> None:
        """A name is not given out again after a row with it could have been forgotten."""
        nothing = (await self.history.ensure("a")).cursor
        [stored] = await append(self.store, drafts(1))
        self.db.accounts.delete_many({})
        self.db.events.delete_many({})
        self.db.epochs.delete_many({})
        [again] = await append(await self.opened(), [draft(key="again")])
        self.assertNotEqual(again.event.epoch, stored.event.epoch)
        for cursor in (nothing, stored.event.cursor):
            self.assertEqual((await self.lost("a", cursor)).epoch, again.event.epoch)

    async def test_epochs_end_by_themselves(self) -> None:
        """Sooner than rows of accounts, which the server forgets as well."""
        information = self.db.epochs.index_information()["began"]
        self.assertLess(information["expireAfterSeconds"], self.retention.numbering)
        self.assertGreater(information["expireAfterSeconds"], self.retention.renewal)

    async def lapse(self) -> None:
        """Leases run by the server's clock, so they are dated back."""
        back = {"$subtract": ["$expires_at", int(LEASE * 1000) + 1000]}
        self.db.instances.update_many({}, [{"$set": {"expires_at": back}}])

    async def test_the_hook_documents_are_what_a_foreign_publisher_needs(self) -> None:
        """Account and URL are at top level, and the URL alone tells the account."""
        one = await self.registry.add_instance(Instance("1", "http://127.0.0.1:8000"))
        await self.registry.register(one, ["a/ö"])
        [hook] = self.db.hooks.find({"account_id": "a/ö"}, {"_id": 0})
        self.assertEqual(
            hook,
            {"account_id": "a/ö", "url": "http://127.0.0.1:8000/hooks/a%2F%C3%B6", "instance": "1"},
        )

    async def test_hooks_of_foreign_programs_stay(self) -> None:
        """A row without an instance belongs to no instance: no sweep and no prune removes it."""
        foreign = [
            {"account_id": "a", "url": "http://127.0.0.1:1/result"},
            {"account_id": "b", "url": "http://127.0.0.1:1/result", "instance": None},
            {"account_id": "c", "url": "http://127.0.0.1:1/result", "instance": 7},
        ]
        self.db.hooks.insert_many([dict(row) for row in foreign])  # type: ignore[call-overload]
        one = await self.registry.add_instance(Instance("1", "http://127.0.0.1/1"))
        await self.registry.register(one, ["a"])
        await self.lapse()
        self.db.instances.insert_one({"_id": "foreign"})
        self.assertEqual(await self.registry.sweep(), 1)
        self.assertEqual(await self.registry.sweep(), 0)
        two = await self.registry.add_instance(Instance("2", "http://127.0.0.1/2"))
        await self.registry.register(two, ["a", "b", "c"])
        self.assertEqual(await self.wanting("a", "b", "c"), {"a": ["2"], "b": ["2"], "c": ["2"]})
        self.assertTrue(await self.registry.prune(two))
        self.assertEqual(list(self.db.hooks.find({}, {"_id": 0}).sort("account_id")), foreign)
        self.assertEqual(list(self.db.instances.find({})), [{"_id": "foreign"}])

    async def test_a_draft_that_does_not_fit_fails_alone(self) -> None:
        """
        More than a document holds is refused; those beside it are stored, and numbered without a
        gap.
        """
        huge = b'"data":"%b"' % (b"x" * 17_000_000)
        answers = await append(
            self.store, [draft(key="1"), draft(key="huge", payload=huge), draft(key="2")]
        )
        self.assertEqual([getattr(answer, "status", None) for answer in answers], [None, 413, None])
        self.assertEqual(seqs([answers[0], answers[2]]), [1, 2])

    async def test_a_draft_that_cannot_be_encoded_fails_alone(self) -> None:
        """A lone surrogate is no text; those beside it are stored, and numbered without a gap."""
        answers = await append(self.store, [draft(key="1"), draft(key="\ud800"), draft(key="2")])
        self.assertEqual([isinstance(answer, Stored) for answer in answers], [True, False, True])
        self.assertEqual(seqs([answers[0], answers[2]]), [1, 2])

    async def test_a_document_below_the_floor_is_no_duplicate(self) -> None:
        """
        What an insert that came much too late left below the floor is neither read nor taken for a
        first.
        """
        await append(self.store, drafts(25))
        await self.history.sweep()
        self.reactor.advance(DELETE_DELAY)
        await self.history.sweep()
        position = await self.history.ensure("a")
        zombie = {
            **self.db.events.find_one({"seq": 20}, {"_id": 0}),  # type: ignore[dict-item]
            "seq": 8,
            "key": "late",
            "id": "late",
        }
        self.db.events.insert_one(zombie)
        await self.lost("a", Cursor(position.epoch, 7))
        [answer] = await append(self.store, [draft(key="late")])
        self.assertEqual((answer.duplicate, answer.event.seq), (False, 26))
        self.assertEqual(seqs(await self.everything()), list(range(16, 27)))

    async def test_a_long_history_is_trimmed_without_a_sweep(self) -> None:
        """
        After appends, at most a tenth more than the length can be read, and the floor is on record.

        The events below it stay until no writer can rely on a head that they follow.
        """
        for turn in range(10):
            await append(self.store, drafts(7, prefix=f"{turn}."))
        await until(lambda: self.db.accounts.find_one({"_id": "a"})["floor"] >= 59, "trimmed")  # type: ignore[index]
        self.assertEqual(self.db.events.count_documents({}), 70)
        [row] = self.db.accounts.find({"_id": "a"})
        turn = 0
        while self.db.events.count_documents({"account": "a"}) != 70 - row["floor"]:
            self.reactor.advance(DELETE_DELAY)
            turn += 1
            await append(self.store, [draft("b", f"{turn}")])

    async def test_a_row_that_is_old_is_marked_as_used(self) -> None:
        """
        A question for heads, and an append, keep the server from deleting the numbering.
        """
        for use in (self.history.heads, self.history.ensure, None):
            await append(self.store, drafts(1))
            self.db.accounts.update_one(
                {"_id": "a"},
                [{"$set": {"touched": {"$subtract": ["$touched", 20 * 86400 * 1000]}}}],
            )
            before = self.db.accounts.find_one({"_id": "a"})["touched"]  # type: ignore[index]
            if use is None:
                other = await self.opened()
                await append(other, drafts(1, prefix="other"))
            else:
                await use(["a"] if use == self.history.heads else "a")
            self.assertGreater(self.db.accounts.find_one({"_id": "a"})["touched"], before)  # type: ignore[index]

    async def test_an_older_numbering_sorted_in_front_is_seen_through(self) -> None:
        """Remains of another epoch, whatever its name, do not change where the account cursors."""
        await append(self.store, drafts(3))
        row = self.db.events.find_one({"seq": 2}, {"_id": 0})
        self.db.events.insert_one({**row, "epoch": "zzz", "seq": 9, "key": "other"})  # type: ignore[dict-item]
        other = await self.opened()
        self.assertEqual((await other.history.ensure("a")).head, 3)
        self.assertEqual(seqs(await append(other, [draft(key="next")])), [4])

    async def test_a_sweep_leaves_hooks_that_were_put_in_meanwhile(self) -> None:
        """
        An instance may be added anew while its former run is swept: its new hooks stay.
        """
        for _ in range(10):
            one = await self.registry.add_instance(Instance("1", "http://127.0.0.1/1"))
            await self.registry.register(one, ["old", "a"])
            await self.lapse()
            other = (await self.opened()).registry
            sweeping = [self.registry.sweep(), other.sweep(), self.registry.prune(one)]
            again = await other.add_instance(one)
            await other.register(again, ["a"])
            await gatherResults(sweeping)
            self.assertEqual(await self.wanting("a", "old"), {"a": ["1"]})
            self.assertIsNotNone(await self.registry.renew(again))

    def interrupt(self, collection: str, before: bool, happens: Any) -> None:
        """
        Call `happens` just before, or just after, the registry's first delete in a collection.
        """
        delete = self.registry._delete
        pending = [happens]

        async def interrupted(deadline: float, where: str, which: Any) -> int:
            event = pending.pop() if where == collection and pending else None
            if event is not None and before:
                await event()
            count = await delete(deadline, where, which)
            if event is not None and not before:
                await event()
            return int(count)

        self.patch(self.registry, "_delete", interrupted)

    async def test_an_instance_that_enlists_while_it_is_pruned_keeps_its_new_hooks(self) -> None:
        """Between the end of its old row and that of its old hooks it may begin its next life."""
        one = await self.registry.add_instance(Instance("1", "http://127.0.0.1/1"))
        await self.registry.register(one, ["old", "a"])
        other = (await self.opened()).registry

        async def next_life() -> None:
            await other.register(await other.add_instance(one), ["a"])

        self.interrupt("instances", False, next_life)
        self.assertTrue(await self.registry.prune(one))
        self.assertEqual(await self.wanting("a", "old"), {"a": ["1"]})

    async def test_a_hook_taken_over_is_not_swept_with_its_former_owner(self) -> None:
        """
        An instance that begins at the URL of a dead one, in this moment, keeps the hooks that both
        had.
        """
        one = await self.registry.add_instance(Instance("1", "http://127.0.0.1/same"))
        await self.registry.register(one, ["a", "b"])
        await self.lapse()
        other = (await self.opened()).registry
        two = await other.add_instance(Instance("2", "http://127.0.0.1/same"))
        self.interrupt("hooks", True, lambda: other.register(two, ["a"]))
        await self.registry.sweep()
        self.assertEqual(await self.wanting("a", "b"), {"a": ["2"]})
        self.assertEqual(self.db.hooks.count_documents({}), 1)

    async def test_an_append_whose_answer_is_lost_is_ours(self) -> None:
        """
        When the connection breaks after the insert, the second attempt finds the first: stored
        once, by us.
        """
        link = self.store._link
        write_on = link.write_on
        breaks = [AutoReconnect("the answer is lost")]

        async def lossy(*arguments: Any) -> Any:
            answer = await write_on(*arguments)
            if breaks:
                raise breaks.pop()
            return answer

        self.patch(link, "write_on", lossy)
        answers = await append(self.store, [*drafts(2), draft("b")])
        self.assertEqual(
            [(answer.event.seq, answer.duplicate) for answer in answers],
            [(1, False), (2, False), (1, False)],
        )
        self.assertEqual(self.db.events.count_documents({}), 3)

    async def test_a_changed_limit_changes_the_index(self) -> None:
        """
        A store with another age changes the index that the first one made.
        """
        await self.opened(Retention(length=10, age=90 * 86400.0))
        self.assertEqual(
            self.db.accounts.index_information()["touched"]["expireAfterSeconds"], 900 * 86400
        )

    async def test_what_was_read_is_durable(self) -> None:
        """
        A reader that finds another process's event waits until the journal has it.
        """
        if self.store._link.replicated:
            return
        await append(self.store, drafts(1))
        row = self.db.events.find_one({}, {"_id": 0})
        flushes = self.flushes()
        self.db.events.insert_one({**row, "seq": 2, "key": "unjournalled"})  # type: ignore[dict-item]
        self.assertEqual((await self.history.ensure("a")).head, 2)
        self.assertEqual(self.flushes(), flushes + 1)
        self.assertEqual(
            seqs(await self.history.read("a", Cursor(row["epoch"], 0), None, 10)),  # type: ignore[index]
            [1, 2],  # type: ignore[index]
        )
        await self.history.heads(["a"])
        self.assertEqual(self.flushes(), flushes + 1)

    def flushes(self) -> int:
        """The number of deletes: a reader waits for the journal by a delete of nothing."""
        return int(self.db.command("serverStatus")["metrics"]["commands"]["delete"]["total"])

    async def test_a_new_epoch_leaves_remains_alone(self) -> None:
        """An event of another numbering has numbers that would collide, and is not moved."""
        await append(self.store, drafts(3))
        [row] = self.db.events.find({"seq": 2}, {"_id": 0})
        self.db.events.insert_one({**row, "epoch": "zzz", "key": "other"})
        epoch = await self.history.begin_epoch()
        self.assertEqual(await self.history.ensure("a"), (epoch, 3, 0))
        self.assertEqual(seqs(await self.everything()), [1, 2, 3])
        self.assertEqual(self.db.events.count_documents({"epoch": "zzz"}), 1)

    async def test_a_new_epoch_that_was_interrupted_is_finished_by_the_next(self) -> None:
        """Wherever it was interrupted: after the events, or after some of them."""
        await append(self.store, [*drafts(3), *drafts(2, "b")])
        link = self.store._link
        change = link.change
        for interrupted in ("accounts", "events"):
            before = (await self.history.ensure("a")).epoch

            async def broken(deadline: float, body: Any, where: str = interrupted) -> Any:
                if body.get("update") == where:
                    if where == "events":
                        body = {**body, "updates": body["updates"][:1]}
                        await change(deadline, body)
                    raise OperationFailure("interrupted")
                return await change(deadline, body)

            link.change = broken
            await self.assertFailure(self.history.begin_epoch(), Unavailable)
            link.change = change
            epoch = await self.history.begin_epoch()
            self.assertGreater(epoch, before)
            for account, head in (("a", 3), ("b", 2)):
                self.assertEqual(await self.history.ensure(account), (epoch, head, 0))
                self.assertEqual(len(await self.everything(account)), head)
            self.assertEqual([row["_id"] for row in self.db.epochs.find({})], [epoch])

    async def test_a_ping_writes_at_most_once_a_second(self) -> None:
        """So it notices what only a write does, and costs little however often it is asked."""
        for _ in range(3):
            await self.store.ping()
        [row] = self.db.pings.find({})
        before = self.pings()
        await self.store.ping()
        self.assertEqual(self.pings(), before)
        self.reactor.advance(PING_LIFETIME)
        await self.store.ping()
        [again] = self.db.pings.find({})
        self.assertEqual(again["_id"], row["_id"])
        self.assertGreaterEqual(again["at"], row["at"])
        self.assertEqual(self.pings(), before + 1)

    def pings(self) -> int:
        """How often something was updated: that is how a ping writes."""
        return int(self.db.command("serverStatus")["metrics"]["commands"]["update"]["total"])


_replica_set: list[Mongod] = []


class ReplicaSetTests(MongoTests):
    """A replica set of one member keeps it, too."""

    def database(self) -> str:
        if not _replica_set:
            server = Mongod(replica_set="plumber").start()
            atexit.register(server.stop)
            _replica_set.append(server)
        return with_database(_replica_set[0].uri)

    async def test_a_majority_is_asked(self) -> None:
        """A write waits for the majority, and a read sees what the majority has."""
        self.assertTrue(self.store._link.replicated)
