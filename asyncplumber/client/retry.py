"""
What a POST looks like, what an answer means, and when to try again.  Pure, and standard library
only.

Shared by the sender for synchronous programs and the one on Twisted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time
from decimal import Decimal
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit
from uuid import UUID, uuid4

Account = str | int | UUID  # what a database has as a key is taken as its text
Time = datetime | str

DEFAULT_TYPE = (
    "result"  # said here again: the rooms of the server need Twisted, and this one must not
)
ANSWER_BYTES = 64 * 1024  # of an answer that are looked at: a receipt has about 150
RETRY_AFTER_LONGEST = 60.0  # seconds; who asks for a longer pause is asked again after this
_TRANSIENT = frozenset({408, 429})  # besides every 5xx
_VISIBLE = re.compile("[!-~]+")
_HEADER = re.compile("[!-~]([ -~]*[!-~])?")


class Refused(Exception):
    """
    The answer says that this will never be accepted.  `status`, `code` and `message` are those of
    the answer.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(status, code, message)
        self.status, self.code, self.message = status, code, message

    def __str__(self) -> str:
        return f"refused with {self.status} ({self.code}): {self.message}"


class Undelivered(Exception):
    """
    Given up.  `reason` is why the last of the `attempts` failed.

    The event may have arrived all the same, if only the answers were lost: send it again with the
    same `id`, and it will not be there twice.
    """

    def __init__(self, id: str, attempts: int, reason: str) -> None:
        super().__init__(id, attempts, reason)
        self.id, self.attempts, self.reason = id, attempts, reason

    def __str__(self) -> str:
        return f"event {self.id} is undelivered after {self.attempts} attempt{'s'[: self.attempts != 1]}: {self.reason}"


class Receipt(NamedTuple):
    """
    What became of an event: it is kept, at the place `cursor`.

    `subscribers` is how many were given it at once; nobody is no failure, they will find it in the
    history. `duplicate`: it was there before, under the same id.  `instances` counts those reached
    (``ok``) and not (``failed``).
    """

    id: str
    cursor: str
    duplicate: bool
    subscribers: int
    instances: Mapping[str, int]


class Post(NamedTuple):
    """One event as an HTTP request, the same at each attempt."""

    id: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class Answer(NamedTuple):
    """What an attempt brought back; the names of `headers` are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class RetryPolicy(NamedTuple):
    """
    How long one send keeps trying.  All but `attempts` in seconds.

    `timeout`: without a sign of life, after which an attempt has failed.  `attempts`: None for as
    many as fit into `deadline`, which is for all of them with the pauses between.  A pause is a
    random part of `initial_backoff`, doubled with each failure up to `max_backoff`, so that many
    tasks that failed together do not come back together.
    """

    timeout: float = 5.0
    attempts: int | None = None
    deadline: float = 30.0
    initial_backoff: float = 0.25
    max_backoff: float = 8.0


class Address:
    """
    Where to send, and as whom.  Raises ValueError, without repeating a secret, if it cannot be
    used.
    """

    def __init__(self, url: str, token: str | None, headers: Mapping[str, str] | None) -> None:
        parts = urlsplit(url)
        if (
            parts.scheme not in ("http", "https")
            or not parts.hostname
            or not _VISIBLE.fullmatch(url)
        ):
            raise ValueError("the URL of a plumber looks like http://127.0.0.1:8080")
        if parts.username is not None or parts.query or parts.fragment:
            raise ValueError(
                "the URL of a plumber has no user, query or fragment; a token is given as token="
            )
        if token is not None and not _VISIBLE.fullmatch(token):
            raise ValueError("a token is visible ASCII without spaces")
        self.secure = parts.scheme == "https"
        self.host = parts.hostname
        self.port = parts.port or (443 if self.secure else 80)
        self.root = f"{parts.scheme}://{parts.netloc}"
        self._prefix = parts.path.rstrip("/")
        self._headers = {
            "User-Agent": "asyncplumber",
            "Accept": "application/json",
            **(headers or {}),
        }
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"
        for name, value in self._headers.items():
            if not (_VISIBLE.fullmatch(name) and ":" not in name and _HEADER.fullmatch(value)):
                raise ValueError(f"the header {name!r} cannot be sent: visible ASCII only")

    def post(
        self,
        account: Account,
        data: Any,
        *,
        id: Account | None,
        type: str,
        content_type: str | None,
        time: Time | None,
    ) -> Post:
        """
        The request for this event.

        Raises ValueError or TypeError, which names the argument, for what cannot be sent; the rest
        the plumber judges.
        """
        key = _key("account", account)
        if not key:
            raise ValueError("an account has a name")
        name = str(uuid4()) if id is None else _key("id", id)
        kind, body = encoded(data)
        kind = kind if content_type is None else _text("content_type", content_type) or kind
        named = {"Webhook-Id": name, "Event-Type": _text("type", type), "Content-Type": kind}
        if time is not None:
            named |= _as_cloud_event(name, type, time)
        for header, value in named.items():
            if not _HEADER.fullmatch(value):
                raise ValueError(f"{header} is one or more characters of visible ASCII")
        path = f"{self._prefix}/hooks/{quote(key, safe='')}"
        return Post(name, path, {**self._headers, **named}, body)


def _key(argument: str, value: Any) -> str:
    """An account or an id as text: numbers and UUIDs are what databases have as keys."""
    if isinstance(value, str):
        return value
    if isinstance(value, int | UUID) and not isinstance(value, bool):
        return str(value)
    raise TypeError(f"{argument} is a str, an int or a UUID, and not {type(value).__name__}")


def _text(argument: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    raise TypeError(f"{argument} is a str, and not {type(value).__name__}")


def encoded(data: Any) -> tuple[str, bytes]:
    """
    The content type and the bytes of `data`.  Raises ValueError or TypeError for what JSON cannot
    express.
    """
    if isinstance(data, bytes | bytearray | memoryview):
        return "application/octet-stream", bytes(data)
    if isinstance(data, str):
        return "text/plain; charset=utf-8", data.encode()
    text = json.dumps(data, allow_nan=False, separators=(",", ":"), default=plain)
    return "application/json", text.encode()


def plain(value: Any) -> str:
    """
    The text for a value that JSON has no word for: ISO 8601 for dates and times, a string of digits
    for a Decimal, so that it stays exact, and a UUID as it is written.  Raises TypeError for all
    else.
    """
    if isinstance(value, date | time):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, Decimal | UUID):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be expressed in JSON")


def _as_cloud_event(id: str, type: str, time: Time) -> dict[str, str]:
    """
    The time of an event has no header of its own; CloudEvents have one, if the others are there
    (binary mode).
    """
    if isinstance(time, datetime):
        if time.tzinfo is None:
            raise ValueError("a time needs a time zone")
        time = time.astimezone(UTC).isoformat().replace("+00:00", "Z")
    elif not isinstance(time, str):
        raise TypeError(f"time is a datetime or a str, and not {time.__class__.__name__}")
    named = {
        "ce-specversion": "1.0",
        "ce-source": "/asyncplumber/client",
        "ce-id": id,
        "ce-type": type,
        "ce-time": time,
    }
    return {
        name: quote(value, safe="!#$&'()*+,-./:;<=>?@[\\]^_`{|}~") for name, value in named.items()
    }


class Tries:
    """
    What one send does after each attempt.  Knows no socket: the time (seconds, monotonic) is told
    to it.
    """

    def __init__(
        self, retry_policy: RetryPolicy, id: str, now: float, chance: Callable[[], float]
    ) -> None:
        self._retry_policy = retry_policy
        self._id = id
        self._end = now + retry_policy.deadline
        self._chance = chance
        self._failures = 0

    def timeout(self, now: float) -> float:
        """Seconds for the attempt that begins now."""
        return max(0.001, min(self._retry_policy.timeout, self._end - now))

    def failed(self, reason: str, now: float, *, asked: float = 0.0) -> float:
        """
        An attempt failed.  The seconds to the next one, `asked` at least.  Raises `Undelivered` if
        that was the last.
        """
        doubled = self._retry_policy.initial_backoff * 2.0 ** min(self._failures, 30)
        self._failures += 1
        pause = min(asked, RETRY_AFTER_LONGEST) + self._chance() * min(
            self._retry_policy.max_backoff, doubled
        )
        if self._failures == self._retry_policy.attempts or now + pause >= self._end:
            raise Undelivered(self._id, self._failures, reason)
        return pause

    def hopeless(self, reason: str) -> Undelivered:
        """What to raise where another attempt would fail in the same way."""
        return Undelivered(self._id, self._failures + 1, reason)

    def answered(self, answer: Answer, now: float) -> Receipt | float:
        """
        What an answer means: a receipt, or the seconds to the next attempt.  Raises `Refused`,
        `Undelivered`.
        """
        said = _object(answer.body)
        if 200 <= answer.status < 300:
            try:
                receipt = (
                    said["id"],
                    said["cursor"],
                    said["duplicate"],
                    said["subscribers"],
                    said["instances"],
                )
            except KeyError:
                raise Refused(
                    answer.status,
                    "no-receipt",
                    "the answer is no receipt: is this the URL of a plumber?",
                ) from None
            return Receipt(*receipt)
        code, message = _complaint(answer.status, said)
        if answer.status in _TRANSIENT or answer.status >= 500:
            return self.failed(
                f"{answer.status} ({code}): {message}", now, asked=_retry_after(answer.headers)
            )
        raise Refused(answer.status, code, message)


def _object(body: bytes) -> dict[str, Any]:
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def _complaint(status: int, said: dict[str, Any]) -> tuple[str, str]:
    """Code and message of an error: ours, those of RFC 9457, or what the status alone says."""
    if 300 <= status < 400:
        return "redirect", "redirects are not followed; send to where it points"
    error = said.get("error")
    if not isinstance(error, dict):
        error = {"code": said.get("type"), "message": said.get("detail") or said.get("title")}
    return str(error.get("code") or "error")[:100], str(
        error.get("message") or "no reason was given"
    )[:500]


def _retry_after(headers: Mapping[str, str]) -> float:
    """
    Seconds that the answer asks to wait.  A date is measured against the answer's own, so that no
    clock needs to be right.
    """
    asked = headers.get("retry-after", "").strip()
    if asked.isascii() and asked.isdigit():
        return float(asked[:9])
    try:
        return max(
            0.0,
            (
                parsedate_to_datetime(asked) - parsedate_to_datetime(headers.get("date", ""))
            ).total_seconds(),
        )
    except (ValueError, TypeError):  # TypeError: only one of the two dates has a time zone
        return 0.0
