"""
Begins a new epoch in a store that was put back from a backup: ``python -m asyncplumber.new_epoch
STORE``.

Numbers that were given out after the backup are given out again.  Clients that know them would take
new events for old ones; by the new epoch they are told of a gap instead.  See
``docs/howto/backup.rst``.
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
    Begin it in the store that `uri` names.  Returns the epoch.  Raises what `open_store` and
    `IHistory.begin_epoch` raise.
    """
    store = open_store(uri, Retention(), reactor)
    await store.start()
    try:
        return str(await store.history.begin_epoch())
    finally:
        await store.stop()


def main(arguments: Sequence[str]) -> None:
    """
    The command.  It ends with status 1, and a sentence on standard error, if nothing could be done.
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
