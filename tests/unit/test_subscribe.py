"""How a client subscribes: its resume point, its wait, its transport and its admission."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.core.channel import Channel
from asyncplumber.core.subscribe import WAIT, Admission, resume_point, wait_in
from asyncplumber.errors import BadCursor, BadRequest, PlumberError, Unavailable
from asyncplumber.event import EARLIEST, Cursor
from asyncplumber.grant import OPEN
from asyncplumber.transports.choice import Transport, choose
from asyncplumber.wire.preferences import MAX_WAIT
from harness.core import CoreCase


class ResumePointTests(SynchronousTestCase):
    """Where a client resumes, by its headers and its query."""

    def test_without_a_cursor_there_are_live_events_only(self) -> None:
        """An empty one is none: a browser sends it before its first event."""
        for headers in ({}, {b"last-event-id": b""}):
            for query in ({}, {"after": [""]}, {"lastEventId": [""]}):
                self.assertIsNone(resume_point(headers, query))

    def test_the_header_counts_more_than_the_query(self) -> None:
        """And in the query, the names that clients put there themselves more than ``after``."""
        query = {"after": ["e.1"]}
        self.assertEqual(resume_point({}, query), Cursor("e", 1))
        for name in ("lastEventId", "last_event_id", "lastEventID"):
            self.assertEqual(resume_point({}, {**query, name: ["e.2"]}), Cursor("e", 2))
        header = {b"last-event-id": b"e.3"}
        self.assertEqual(resume_point(header, {**query, "lastEventId": ["e.2"]}), Cursor("e", 3))

    def test_the_last_of_several_values_counts(self) -> None:
        """As a client appends its own to a URL that has one."""
        self.assertEqual(resume_point({}, {"after": ["e.1", "e.2"]}), Cursor("e", 2))

    def test_the_earliest_event(self) -> None:
        """By a word."""
        self.assertEqual(resume_point({}, {"after": ["earliest"]}), EARLIEST)

    def test_what_is_no_cursor_is_refused(self) -> None:
        """It is never taken for none."""
        for text in ("x", "e.-1", "e.1.2", "earliest ", "\xe9.1"):
            self.assertRaises(BadCursor, resume_point, {}, {"after": [text]})
            header = {b"last-event-id": text.encode("latin-1")}
            self.assertRaises(BadCursor, resume_point, header, {})


class WaitTests(SynchronousTestCase):
    """The seconds of a long-poll."""

    def test_the_wait_has_a_default_and_bounds(self) -> None:
        """Fractions are seconds as well."""
        self.assertEqual(wait_in({}), WAIT)
        for text, seconds in (("0", 0), ("1.5", 1.5), (f"{MAX_WAIT}", MAX_WAIT)):
            self.assertEqual(wait_in({"wait": [text]}), seconds)
        for text in ("", "x", "-1", "nan", "inf", f"{MAX_WAIT + 1}"):
            self.assertRaises(BadRequest, wait_in, {"wait": [text]})


class ChoiceTests(SynchronousTestCase):
    """The transport that a request chooses."""

    def test_the_request_chooses(self) -> None:
        """An upgrade counts more than what is accepted; without either it is a long-poll."""
        stream = {b"accept": b"text/html, text/event-stream;q=0.9"}
        for headers, upgrade, transport in (
            ({}, False, Transport.LONG_POLL),
            ({b"accept": b"*/*"}, False, Transport.LONG_POLL),
            (stream, False, Transport.EVENT_STREAM),
            (stream, True, Transport.WEBSOCKET),
        ):
            self.assertIs(choose(headers, upgrade=upgrade), transport)


class AdmissionTests(CoreCase):
    """The wait for a channel."""

    def setUp(self) -> None:
        super().setUp()
        self.served: list[Channel] = []
        self.refused: list[PlumberError] = []

    def admit(self, serve: Any = None) -> Admission:
        """Ask for the channel of an account."""
        return Admission(self.hub, "a", OPEN, serve or self.served.append, self.refused.append)

    def test_an_open_channel_is_there_at_once(self) -> None:
        """The first client waits for the store, the next does not."""
        self.history.held.add("ensure")
        first = self.admit()
        self.assertEqual((first.is_pending, self.served), (True, []))
        self.history.release()
        self.assertEqual((first.is_pending, len(self.served)), (False, 1))
        second = self.admit()
        self.assertEqual((second.is_pending, self.served), (False, [self.served[0]] * 2))

    def test_a_client_that_leaves_is_not_served(self) -> None:
        """Nor is it refused; another one that waits is served."""
        self.history.held.add("ensure")
        first, _ = self.admit(), self.admit()
        first.cancel()
        self.history.release()
        self.assertEqual((len(self.served), self.refused, self.hub.waiting), (1, [], 0))
        first.cancel()

    def test_a_store_that_is_away_refuses(self) -> None:
        """With the error that the client is told."""
        self.history.error = Unavailable()
        admission = self.admit()
        self.assertEqual((admission.is_pending, self.served), (False, []))
        self.assertEqual([error.status for error in self.refused], [503])

    def test_a_client_that_cannot_be_served_is_refused(self) -> None:
        """What went wrong is logged, and not told; the channel open already or not."""

        def serve(channel: Channel) -> None:
            raise RuntimeError("a secret")

        for _ in range(2):
            self.admit(serve)
        self.assertEqual([error.status for error in self.refused], [500, 500])
        self.assertNotIn("secret", self.refused[0].message)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 2)
