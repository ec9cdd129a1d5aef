"""What a sender sends, what a response means, and when a sender tries again: in memory."""

from __future__ import annotations

import json
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from uuid import UUID

from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.client import RetryPolicy, Sender, Undelivered
from asyncplumber.client.request import Endpoint
from asyncplumber.client.response import Response
from asyncplumber.client.retry import RetryState
from asyncplumber.event import Event
from asyncplumber.sending import encode
from asyncplumber.wire.parse import drafts_of


class RequestTests(SynchronousTestCase):
    """What goes out."""

    def test_dates_decimals_and_uuids(self) -> None:
        """They are sent as text: ISO 8601, exact digits, the usual form of a UUID."""
        key = UUID("12345678-1234-5678-1234-567812345678")
        noon = datetime(2012, 9, 28, 12, tzinfo=timezone(timedelta(hours=1)))
        rich = {
            "day": date(2012, 9, 28),
            "at": noon,
            "price": Decimal("1.50"),
            "key": key,
            "open": noon.time(),
        }
        text = {
            "day": "2012-09-28",
            "at": "2012-09-28T12:00:00+01:00",
            "price": "1.50",
            "key": str(key),
        }
        self.assertEqual(json.loads(encode(rich)[1]), {**text, "open": "12:00:00"})
        self.assertEqual(encode([Decimal("1.50")]), ("application/json", b'["1.50"]'))
        error = self.assertRaises(TypeError, encode, {"odd": {1}})
        self.assertEqual(str(error), "set cannot be expressed in JSON")

    def test_understood(self) -> None:
        """The plumber reads what the sender meant, with a time and without."""
        endpoint = Endpoint("http://127.0.0.1:8080", None, None)
        for time, told in [(None, "arrival"), ("2012-09-28T11:00:00Z", "2012-09-28T11:00:00.000Z")]:
            for data in ({"total": [7, None]}, "a\nb", b"\xff"):
                sent = endpoint.request(
                    "42", data, id='a "b"%41', type="re port", content_type=None, time=time
                )
                headers = {
                    name.lower().encode(): value.encode() for name, value in sent.headers.items()
                }
                [draft] = drafts_of("42", headers, sent.body, "arrival")
                self.assertEqual((draft.id, draft.type, draft.time), ('a "b"%41', "re port", told))
                self.assertEqual(Event.from_draft(draft, "e", 1).data, data)

    def test_a_wrong_url(self) -> None:
        """A wrong URL is refused at once, and a password in it is not repeated."""
        for url in [
            "",
            "127.0.0.1:8080",
            "ftp://x",
            "http://",
            "http://a b",
            "http://u:pass@x",
            "http://x/?q",
            "http://x/#f",
        ]:
            error = self.assertRaises(ValueError, Sender, url)
            self.assertNotIn("pass", str(error))


class ScheduleTests(SynchronousTestCase):
    """How long the pauses are."""

    def pauses(self, state: RetryState, *responses: Response) -> list[object]:
        return [state.responded(response, 0.0) for response in responses]

    def test_growth(self) -> None:
        """The longest pause doubles with each failure, up to a bound."""
        state = RetryState(
            RetryPolicy(initial_backoff=1.0, max_backoff=5.0, deadline=9e9), "t", 0.0, lambda: 1.0
        )
        self.assertEqual([state.failed("", 0.0) for _ in range(5)], [1.0, 2.0, 4.0, 5.0, 5.0])
        for _ in range(2000):
            self.assertEqual(state.failed("", 0.0), 5.0)

    def test_jitter(self) -> None:
        """The random part may be nothing."""
        self.assertEqual(RetryState(RetryPolicy(), "t", 0.0, lambda: 0.0).failed("", 0.0), 0.0)

    def test_retry_after(self) -> None:
        """Retry-After counts in both its forms, within a bound; nonsense is ignored."""
        now, later, past = (
            "Fri, 28 Sep 2012 10:00:00 GMT",
            "Fri, 28 Sep 2012 10:00:07 GMT",
            "Fri, 28 Sep 2012 09:00:00 GMT",
        )
        for asked, seconds in [
            ("3", 3.0),
            (later, 7.0),
            (past, 0.0),
            ("9" * 5000, 60.0),
            ("soon", 0.0),
            ("-1", 0.0),
            ("²", 0.0),
        ]:
            state = RetryState(RetryPolicy(deadline=9e9), "t", 0.0, lambda: 0.0)
            self.assertEqual(
                self.pauses(state, Response(503, {"retry-after": asked, "date": now}, b"")),
                [seconds],
                asked,
            )

    def test_retry_after_the_deadline(self) -> None:
        """If the server asks for a longer pause than there is time, the sender gives up at once."""
        state = RetryState(RetryPolicy(deadline=5.0), "t", 0.0, lambda: 0.0)
        response = Response(429, {"retry-after": "5"}, b"")
        self.assertRaises(Undelivered, state.responded, response, 0.0)

    def test_last_attempt_is_short(self) -> None:
        """No attempt may last beyond the deadline."""
        state = RetryState(RetryPolicy(timeout=5.0, deadline=8.0), "t", 100.0, lambda: 0.0)
        self.assertEqual((state.timeout(100.0), state.timeout(106.0)), (5.0, 2.0))
