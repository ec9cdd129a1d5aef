"""
Fakes for tests: a server in memory, and senders that only remember.

No socket is opened, and no test waits: time is a clock that the test moves.

An application that sends gets a ``FakeSender`` in place of its sender::

    from asyncplumber.client import Undelivered
    from asyncplumber.testing import FakeSender

    def finish_order(sender, order):
        try:
            sender.send(order["customer"], {"total": order["total"]}, type="invoice")
        except Undelivered:
            order["notified"] = False

    sender = FakeSender()
    order = {"customer": 42, "total": 7}
    finish_order(sender, order)
    [event] = sender.sent
    assert (event.account, event.type, event.data) == ("42", "invoice", {"total": 7})

    sender.fail(Undelivered("t-1", 3, "nobody there"))
    finish_order(sender, order)
    assert order["notified"] is False

``FakeOutbox`` does the same for an ``Outbox`` and its tasks, and ``FakeTreqSender`` for a
``TreqSender``.

An application that receives uses a ``MemoryServer``, which is all that ``twistd asyncplumber``
starts::

    from asyncplumber.testing import MemoryServer

    server = MemoryServer()
    seen = []
    server.plumber.register("42", seen.append)
    server.settle()

    response = server.post("42", b'"done"', ("Event-Type", "report"))
    assert response.status == 201
    assert [(event.type, event.data) for event in seen] == [("report", "done")]

A client of your own talks to it byte by byte::

    client = server.connect()
    client.send(
        b"GET /events/42?after=earliest HTTP/1.1\\r\\n"
        b"Host: localhost\\r\\nAccept: text/event-stream\\r\\n\\r\\n"
    )
    assert b'"data":"done"' in client.received()

    server.advance(15.0)  # seconds, which pass at once
    assert client.received() != b""  # a comment keeps the connection alive
"""

from asyncplumber.testing.cluster import MemoryCluster
from asyncplumber.testing.senders import FakeOutbox, FakeSender, FakeTreqSender, TaskReport
from asyncplumber.testing.server import (
    NOW,
    ClientResponse,
    MemoryClient,
    MemoryServer,
    parse_responses,
)
from asyncplumber.testing.subscribers import RecordingSubscriber

__all__ = [
    "NOW",
    "ClientResponse",
    "FakeOutbox",
    "FakeSender",
    "FakeTreqSender",
    "MemoryClient",
    "MemoryCluster",
    "MemoryServer",
    "RecordingSubscriber",
    "TaskReport",
    "parse_responses",
]
