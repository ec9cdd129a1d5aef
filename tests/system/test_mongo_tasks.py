"""Tasks and callback URLs in MongoDB."""

from __future__ import annotations

import atexit
from functools import cache
from typing import Any

import pymongo
from twisted.trial.unittest import TestCase

from asyncplumber.stores.mongo.store import MongoStore
from asyncplumber.stores.retention import Retention
from harness.mongod import fresh_uri
from tests.task_contracts import TaskContract

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


class MongoTaskTests(TaskContract, TestCase):
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
