"""A process that appends as fast as it can and prints what was accepted, until a test kills it."""

from __future__ import annotations

import sys

from twisted.internet import reactor
from twisted.internet.defer import Deferred

from asyncplumber.stores import open_store
from asyncplumber.stores.retention import Retention
from tests.contracts import append, drafts


async def write(uri: str, life: str) -> None:
    """Print a line for each append that was answered, with the ids of its events."""
    store = open_store(uri, Retention(length=100_000), reactor)
    await store.start()
    turn = 0
    while True:
        answers = await append(store, drafts(3, "a", f"{life}.{turn}."))
        sys.stdout.write(" ".join(answer.event.id for answer in answers) + "\n")
        sys.stdout.flush()
        turn += 1


if __name__ == "__main__":
    Deferred.fromCoroutine(write(sys.argv[1], sys.argv[2])).addErrback(
        lambda failure: failure.printTraceback()
    )
    reactor.run()
