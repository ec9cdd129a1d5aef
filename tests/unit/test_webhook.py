"""What a POST may bring, as it arrives at a subscriber."""

from __future__ import annotations

import json
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.testing import MemoryServer, RecordingSubscriber


class ContentTests(SynchronousTestCase):
    """Bodies of each kind."""

    def setUp(self) -> None:
        self.server = MemoryServer(body_limit=10_000)
        self.subscriber = RecordingSubscriber()
        admitted = self.server.plumber.hub.admit("a")
        self.server.settle()
        self.successResultOf(admitted).subscribe(self.subscriber).start(None)

    def post(self, body: bytes, kind: str = "", **headers: str) -> tuple[int, Any]:
        """Status and JSON of the answer."""
        named = [(name.replace("_", "-"), value) for name, value in headers.items()]
        reply = self.server.post("a", body, *named, *([("Content-Type", kind)] if kind else []))
        return reply.status, json.loads(reply.body)

    def test_bodies_of_every_kind(self) -> None:
        """JSON stays JSON, text becomes a string, other bytes stay bytes."""
        for body, kind, data in (
            (b'{"a": [1]}', "application/json", {"a": [1]}),
            (b'{"a": 1}', "", {"a": 1}),
            (b"done", "", "done"),
            (b"a=1&b=2", "application/x-www-form-urlencoded", "a=1&b=2"),
            ("héllo".encode("latin-1"), "text/plain; charset=latin-1", "héllo"),
            (b"\xff\x00", "application/octet-stream", b"\xff\x00"),
            (b"\xff\xfe", "", b"\xff\xfe"),
            (b"", "", ""),
        ):
            self.assertEqual(self.post(body, kind)[0], 201, body)
            self.assertEqual(self.subscriber.events[-1].data, data)

    def test_json_that_is_none(self) -> None:
        """The response is 400, with the reason."""
        for body in (b"{", b"NaN", b"", b"\xff", b"[" * 5000, b"1 2", b"\xef\xbb\xbf1"):
            self.assertEqual(self.post(body, "application/json")[0], 400, body)
        self.assertEqual(self.subscriber.events, [])

    def test_cloudevents(self) -> None:
        """Structured, binary and in batches."""
        event = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t", "data": {"n": 1}}
        self.assertEqual(
            self.post(json.dumps(event).encode(), "application/cloudevents+json")[0], 201
        )
        binary = {"ce_specversion": "1.0", "ce_id": "2", "ce_source": "/s", "ce_type": "t%20u"}
        self.assertEqual(self.post(b'{"n":2}', "application/json", **binary)[0], 201)
        batch = json.dumps([{**event, "id": "3"}, {**event, "id": "1"}]).encode()
        status, answer = self.post(batch, "application/cloudevents-batch+json")
        self.assertEqual(
            (status, [receipt["duplicate"] for receipt in answer["receipts"]]), (201, [False, True])
        )
        told = [(event.id, event.type) for event in self.subscriber.events]
        self.assertEqual(told, [("1", "t"), ("2", "t u"), ("3", "t")])
        self.assertEqual(self.post(b"<x/>", "application/cloudevents+xml")[0], 415)

    def test_a_result_a_line(self) -> None:
        """Newline-delimited JSON; all of it or nothing."""
        status, answer = self.post(b'1\n\n{"a":\t2}\r\n', "application/x-ndjson", Webhook_Id="run")
        self.assertEqual(
            (status, [receipt["id"] for receipt in answer["receipts"]]), (201, ["run.1", "run.2"])
        )
        self.assertEqual([event.data for event in self.subscriber.events], [1, {"a": 2}])
        self.assertEqual(self.post(b"1\nx\n", "application/x-ndjson")[0], 400)
        self.assertEqual(len(self.subscriber.events), 2)
