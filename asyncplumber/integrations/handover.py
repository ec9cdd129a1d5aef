"""
What a process that ends at once could not send, and its parent sends.

A task queue that forks for each task ends that process by ``os._exit``, when the task is done.  Its
outbox would have to be emptied before, which takes as long as the plumber is away.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from tempfile import TemporaryFile

from asyncplumber.client.outbox import Outbox
from asyncplumber.client.request import Request
from asyncplumber.client.waiting import Entry, Kind

ENDS = ("completed", "failed", "canceled")
PATIENCE = 0.25  # seconds that a process which ends waits for its outbox


class Handover:
    """
    A temporary file that is open in a process and its fork.

    It has one report per line.  A line that was cut off, because its writer was killed, is ignored.
    """

    def __init__(self) -> None:
        """Make the file.  It has no name, and is gone with the last process that has it open."""
        self._file = TemporaryFile()  # noqa: SIM115

    def give(self, outbox: Outbox) -> None:
        """Write what the outbox of this process cannot send in a moment."""
        for request in outbox.hand_over(PATIENCE):
            self._file.write(_as_line(request))
        self._file.flush()

    def receive(self, outbox: Outbox) -> None:
        """Put what was written into the outbox of this process."""
        with self._file as file:
            file.seek(0)
            for line in file:
                if line.endswith(b"\n"):
                    outbox.report(_from_line(line))


def _as_line(request: Request) -> bytes:
    fields = [request.id, request.path, request.headers, b64encode(request.body).decode()]
    return json.dumps(fields).encode() + b"\n"


def _from_line(line: bytes) -> Entry:
    id, path, headers, body = json.loads(line)
    request = Request(id, path, headers, b64decode(body))
    state = headers.get("Task-State")
    if state is None:
        return Entry(request)
    # Each is an owner of its own: none takes the place of another one.
    return Entry(request, Kind.END if state in ENDS else Kind.BEGIN, owner=object())
