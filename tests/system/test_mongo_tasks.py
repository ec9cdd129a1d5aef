"""Tasks and callback URLs in MongoDB."""

from __future__ import annotations

import atexit
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import pymongo
from bson import ObjectId
from twisted.internet.defer import gatherResults
from twisted.trial.unittest import TestCase

from asyncplumber.errors import TooLarge
from asyncplumber.interfaces import REMEMBERED_URL, Claim
from asyncplumber.stores.mongo.store import MongoStore
from asyncplumber.stores.mongo.task_documents import is_at_or_before, is_before
from asyncplumber.stores.retention import Retention
from harness.mongod import fresh_uri
from tests.task_contracts import TaskContract, TaskEpochContract

TASK_TIMES = (
    "submitted_at", "updated_at", "started_at", "ended_at", "deadline", "leased_until",
)  # fmt: skip


@cache
def database() -> tuple[str, Any]:
    """Return a database for all tests of this process, which is dropped at its end."""
    uri = fresh_uri()
    client: Any = pymongo.MongoClient(uri)
    db = client.get_default_database()

    def drop() -> None:
        client.drop_database(db.name)
        client.close()

    atexit.register(drop)
    return uri, db


class MongoTaskTests(TaskContract, TaskEpochContract, TestCase):
    """A single server keeps the contract.  All tests have one database, which each empties."""

    timeout = 60

    async def setUp(self) -> None:
        self.uri, self.db = database()
        for name in self.db.list_collection_names():
            self.db[name].delete_many({})
        await super().setUp()

    def make(self, retention: Retention, lease: float) -> Any:
        return MongoStore(self.uri, retention, self.reactor, self.reactor, lease=lease)

    async def pass_time(self, seconds: float) -> None:
        """Tasks go by the server's clock, so all their times are dated back."""
        self.reactor.advance(seconds)
        back = int(seconds * 1000)
        for collection, names in (("tasks", TASK_TIMES), ("task_presence", ("until",))):
            fields = {
                name: {
                    "$cond": [
                        {"$eq": [{"$type": f"${name}"}, "date"]},
                        {"$subtract": [f"${name}", back]},
                        "$$REMOVE",
                    ]
                }
                for name in names
            }
            self.db[collection].update_many({}, [{"$set": fields}])

    async def test_a_sweep_looks_at_no_more_than_it_finds(self) -> None:
        """However many tasks there are: its questions are answered by indexes of their own."""
        for n in range(3):
            late: Any = {"deadline_in": 0.001, "lease": 0.001}
            await self.tasks.claim(Claim("a", f"late {n}", "r", input=b"", **late))
        await self.ended(await self.begun("ended"))
        await self.pass_time(10)
        claims = [Claim("a", f"{n}", "r", input=b"") for n in range(100)]
        await gatherResults([self.tasks.claim(claim) for claim in claims])
        for field, which, found in (
            ("deadline", is_before("deadline"), 3),
            ("leased_until", is_at_or_before("leased_until"), 3),
            ("updated_at", {"is_announced": False, **is_at_or_before("updated_at", 5)}, 3),
            ("ended_at", {"is_announced": True, **is_before("ended_at", 5)}, 1),
        ):
            find = {"find": "tasks", "filter": which, "sort": {field: 1}, "limit": 50}
            told = self.db.command({"explain": find, "verbosity": "executionStats"})
            stats = told["executionStats"]
            counts = [stats[name] for name in ("nReturned", "totalKeysExamined")]
            self.assertEqual(counts, [found, found], field)

    async def test_callback_urls_end_by_themselves(self) -> None:
        """If nobody sweeps, the server removes them, later than a sweep would."""
        index = self.db.callback_urls.index_information()["expires_at"]
        self.assertGreater(index["expireAfterSeconds"], REMEMBERED_URL)
        await self.minted("i", 1e12)
        [row] = self.db.callback_urls.find()
        self.assertEqual(row["expires_at"].year, 9999)

    async def test_more_than_a_document_holds_is_refused(self) -> None:
        """As too large, and the row is as it was; the store is not away."""
        huge = b"x" * 17_000_000
        await self.assertFailure(self.tasks.claim(Claim("a", "k", "r", input=huge)), TooLarge)
        self.assertIsNone(await self.tasks.get("a", "k"))
        task = await self.begun(input=b"x" * 9_000_000)
        for size in (17_000_000, 9_000_000):
            changes = {"progress": b"x" * size}
            await self.assertFailure(self.tasks.change(task, changes), TooLarge)
        self.assertEqual(await self.tasks.get("a", "k"), task)
        self.assertEqual(self.store.figures[1].value, 0)

    async def test_a_gap_is_added_once_although_its_finder_died(self) -> None:
        """After it had moved some of the deadlines; whoever comes next moves the others."""
        for key in ("1", "2"):
            await self.begun(key, deadline_in=60.0)
        await self.tasks.extend(5.0, 30.0)
        await self.pass_time(105)
        self.assertGreater(await self.tasks.extend(5.0, 30.0), 0)
        moved = [row["deadline"] for row in self.db.tasks.find().sort("_id")]
        # As if it had died before it moved the second one, and noted that all are moved.
        gap = {"by": ObjectId(), "milliseconds": 200_000, "at": datetime.now(UTC)}
        self.db.task_presence.update_one({}, {"$push": {"moves": gap}})
        again = {
            "$set": {"deadline": moved[0] + timedelta(seconds=200)},
            "$push": {"moves": gap["by"]},
        }
        self.db.tasks.update_one({"key": "1"}, again)
        late = await self.begun("late", deadline_in=60.0)
        self.assertEqual(await self.tasks.extend(5.0, 30.0), 0)
        rows = [row["deadline"] for row in self.db.tasks.find({"key": {"$ne": "late"}}).sort("_id")]
        self.assertEqual(rows, [time + timedelta(seconds=200) for time in moved])
        self.assertEqual((await self.tasks.get("a", "late")).deadline, late.deadline)
        self.assertEqual(self.db.task_presence.find_one()["moves"], [])  # type: ignore[index]
