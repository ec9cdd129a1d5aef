"""What every subscriber may rely on, whichever way it is connected: one suite, run for WebSocket, SSE and long-poll alike."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from typing import Any

from asyncplumber.stores.keeping import Keeping
from asyncplumber.testing import MemoryServer


class Subscriber(ABC):
    """A client of one account, whatever it speaks."""

    @abstractmethod
    def envelopes(self) -> list[dict[str, Any]]:
        """What has come since this was last asked, notices among it."""

    @abstractmethod
    def leave(self) -> None:
        """Go away without a word."""

    @property
    @abstractmethod
    def cursor(self) -> str:
        """Where it stands, by what it was told so far."""

    def results(self) -> list[dict[str, Any]]:
        """The events since this was last asked."""
        return [envelope for envelope in self.envelopes() if not envelope["type"].startswith("plumber.")]


class SubscriberContract:
    """Facts about subscribers.  A test case mixes it in and says how one is connected."""

    server: MemoryServer
    assertEqual: Any
    assertIn: Any
    assertLess: Any

    def subscribe(self, account: str = "a", after: str = "") -> Subscriber:
        """Connect."""
        raise NotImplementedError

    def setUp(self) -> None:
        """A server of its own for each fact."""
        self.server = MemoryServer(plumber={"keeping": Keeping(length=500), "linger": 1.0})

    def post(self, *results: object, account: str = "a") -> None:
        """Results, one after the other."""
        for result in results:
            self.assertIn(self.server.post(account, json.dumps(result).encode()).status, (201, 202))

    def data(self, subscriber: Subscriber) -> list[object]:
        """The results that came."""
        return [envelope["data"] for envelope in subscriber.results()]

    def test_live_events_come_in_order_once(self) -> None:
        """And nothing of what was there before."""
        self.post("before")
        subscriber = self.subscribe()
        self.post(1, 2, 3)
        self.assertEqual(self.data(subscriber), [1, 2, 3])
        self.assertEqual(self.data(subscriber), [])

    def test_an_envelope_tells_everything(self) -> None:
        """The same by every way."""
        subscriber = self.subscribe()
        self.server.post("a", b'{"n": 1}', ("Webhook-Id", "e1"), ("Event-Type", "progress"), ("Content-Type", "application/json"))
        (envelope,) = subscriber.results()
        self.assertEqual(envelope.pop("cursor"), subscriber.cursor)
        self.assertEqual(
            envelope,
            {
                "id": "e1",
                "account": "a",
                "type": "progress",
                "time": "2027-01-15T08:00:00.000Z",
                "content_type": "application/json",
                "data": {"n": 1},
            },
        )

    def test_odd_results_arrive_as_they_were(self) -> None:
        """Line breaks of every kind, text of every script, bytes that are none, and what looks like the protocol itself."""
        subscriber = self.subscribe()
        odd = ["a\nb\r\nc\rd", "\u2028\u2029\x85\x0b\x00", "日本", "\ndata: x\n\nid: 7\n\n", {"": [None, 1e300]}, "x" * 70_000]
        self.post(*odd)
        self.server.post("a", '{"a":\n\n"\u2028"}\r\n'.encode(), ("Content-Type", "application/json"))
        self.assertEqual(self.data(subscriber), [*odd, {"a": "\u2028"}])
        self.server.post("a", b"\xff\n\n\x00", ("Content-Type", "application/octet-stream"))
        self.assertEqual([envelope["data_base64"] for envelope in subscriber.results()], ["/woKAA=="])

    def test_accounts_are_apart(self) -> None:
        """Nobody gets what is for others."""
        one, other = self.subscribe("a"), self.subscribe("b")
        self.post(1)
        self.post(2, account="b")
        self.assertEqual((self.data(one), self.data(other)), ([1], [2]))

    def test_who_comes_back_carries_on(self) -> None:
        """What was missed, each once, then what is new; many pages of it if need be."""
        first = self.subscribe()
        self.post(0)
        self.assertEqual(self.data(first), [0])
        first.leave()
        self.post(*range(1, 401))
        second = self.subscribe(after=first.cursor)
        self.server.settle()
        self.assertEqual(self.data(second), list(range(1, 401)))
        self.post("live")
        self.assertEqual(self.data(second), ["live"])

    def test_all_that_is_kept_can_be_had(self) -> None:
        """From the earliest event on."""
        self.post(1, 2)
        subscriber = self.subscribe(after="earliest")
        self.server.settle()
        self.assertEqual(self.data(subscriber), [1, 2])

    def test_a_gap_is_told_and_nothing_is_replayed_in_part(self) -> None:
        """The notice says what is lost, and where to go on."""
        first = self.subscribe()
        self.post(0)
        first.results()
        first.leave()
        self.post(*range(600))
        second = self.subscribe(after=first.cursor)
        self.server.settle()
        (gap,) = [envelope for envelope in second.envelopes() if envelope["type"] != "plumber.open"]
        epoch = first.cursor.partition(".")[0]
        told = {"from": f"{epoch}.1", "to": f"{epoch}.601", "oldest": f"{epoch}.102"}
        self.assertEqual((gap["type"], gap["cursor"], gap["data"]), ("plumber.gap", f"{epoch}.601", told))
        self.post("live")
        self.assertEqual(self.data(second), ["live"])

    def test_whispers_arrive_and_move_nobody(self) -> None:
        """What is in no history has no cursor, and leaves the client's where it was."""
        subscriber = self.subscribe()
        instance = self.server.plumber.leases.instance.id
        reply = self.server.request("POST", f"/instances/{instance}/hooks/a", body=b'"psst"')
        self.assertEqual(reply.status, 201)
        (envelope,) = subscriber.results()
        self.assertEqual((envelope["data"], envelope["cursor"]), ("psst", None))
        self.post("kept")
        again = self.subscribe(after=subscriber.cursor)
        self.server.settle()
        self.assertEqual(self.data(again), ["kept"])

    def test_who_leaves_leaves_nothing_behind(self) -> None:
        """Early, live, or amid a replay: no subscriber, no channel, no timer."""
        quiet = len(self.server.clock.getDelayedCalls())
        self.post(*range(300))
        for after in ("", "earliest"):
            subscriber = self.subscribe(after=after)
            subscriber.leave()
        self.server.advance(2)
        self.assertEqual((self.server.plumber.hub.subscribers, len(self.server.attendance)), (0, 0))
        self.assertEqual((self.server.plumber.hub.accounts, len(self.server.listener.connections)), ([], 0))
        self.assertEqual(len(self.server.clock.getDelayedCalls()), quiet)

    def test_a_thousand_visits_leak_nothing(self) -> None:
        """Coming, getting something, going."""
        quiet = len(self.server.clock.getDelayedCalls())
        self.post("first")
        cursor = ""
        for visit in range(1000):
            subscriber = self.subscribe(after=cursor)
            if not visit % 100:
                self.post(visit)
                self.assertEqual(self.data(subscriber), [visit])
                cursor = subscriber.cursor
            subscriber.leave()
        self.server.advance(2)
        self.assertEqual((self.server.plumber.hub.subscribers, len(self.server.attendance)), (0, 0))
        self.assertEqual(len(self.server.clock.getDelayedCalls()), quiet)
