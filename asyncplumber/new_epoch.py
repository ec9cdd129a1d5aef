"""
Begin a new epoch in a store that was restored from a backup.

Usage: ``python -m asyncplumber.new_epoch STORE``.

After a restore the store gives out numbers again that it gave out after the backup.  A client that
knows them would take new events for old ones.  With the new epoch it is told of a gap instead.
See "Backup and restore" in the documentation.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import react

from asyncplumber.errors import InstancesRunning, Unavailable
from asyncplumber.stores import open_store
from asyncplumber.stores.retention import Retention

USAGE = "usage: python -m asyncplumber.new_epoch sqlite:PATH | mongodb://…"


async def begin(reactor: Any, uri: str) -> str:
    """
    Begin a new epoch in the store of this URI, and return it.

    Raises:
        ValueError: The URI cannot be used.
        InstancesRunning: Instances use the store.
        Unavailable: The store does not answer.
    """
    store = open_store(uri, Retention(), reactor)
    await store.start()
    try:
        return str(await store.history.begin_epoch())
    finally:
        await store.stop()


def main(arguments: Sequence[str]) -> None:
    """
    Run the command.

    It ends with status 1, and a sentence on standard error, if it could do nothing.
    """
    if len(arguments) != 1 or not arguments[0].startswith(("sqlite:", "mongodb:", "mongodb+srv:")):
        sys.exit(USAGE)

    async def run(reactor: Any) -> None:
        try:
            epoch = await begin(reactor, arguments[0])
        except (InstancesRunning, Unavailable, ValueError) as error:
            sys.exit(f"no new epoch: {error}")
        print(f"a new epoch has begun: {epoch}")

    react(lambda reactor: Deferred.fromCoroutine(run(reactor)))


if __name__ == "__main__":
    main(sys.argv[1:])
