"""
The values that the layers hand to each other.

All are immutable.  They are named tuples, the cheapest kind, because the hot path makes many.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode
from datetime import UTC, datetime
from functools import lru_cache
from itertools import count
from secrets import token_hex
from typing import Any, NamedTuple

from asyncplumber.errors import BadAccount, BadCursor

ACCOUNT_LENGTH = 256  # characters: the longest e-mail address, or two UUIDs with a prefix
NAME_LENGTH = 256  # characters of an event's id or type, which travel in headers
RESERVED_TYPES = "plumber."  # the types of events about the stream itself begin so
TASK_TYPES = "task."  # the types of events of tasks begin so
EARLIEST = "earliest"  # in the place of a cursor: before the oldest event that is kept

_CURSOR = re.compile(r"([0-9a-z]{1,32})\.(0|[1-9][0-9]{0,17})")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def is_plain(text: str, longest: int = NAME_LENGTH) -> bool:
    """
    Return whether `text` can be a name.

    It has 1 to `longest` characters, and no control character, line separator or lone surrogate.
    """
    return 0 < len(text) <= longest and not _CONTROL.search(text)


@lru_cache(maxsize=8192)
def checked_account(name: str) -> str:
    """
    Return `name`.

    Raises:
        BadAccount: It cannot be an account.
    """
    if not is_plain(name, ACCOUNT_LENGTH):
        raise BadAccount
    return name


class Cursor(NamedTuple):
    """The place of an event in its account's history; number 0 is the place before the first."""

    epoch: str
    seq: int

    def __str__(self) -> str:
        return f"{self.epoch}.{self.seq}"

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """
        Read ``epoch.seq``.

        Raises:
            BadCursor: `text` is nothing that a history gives out.
        """
        match = _CURSOR.fullmatch(text)
        if match is None:
            raise BadCursor
        return cls(match[1], int(match[2]))


class Position(NamedTuple):
    """How far an account's history reaches: events with ``floor < seq <= head`` can be read."""

    epoch: str
    head: int
    floor: int

    @property
    def cursor(self) -> Cursor:
        """The place of the newest event."""
        return Cursor(self.epoch, self.head)


class Draft(NamedTuple):
    """
    A result that was understood, and has no place in the history yet.

    Attributes:
        key: Two drafts of an account with the same key are the same event.  It is the id; for a
            CloudEvent, whose id is unique only together with its source, it is both.
        time: RFC 3339 in UTC.
        payload: One member of a JSON object in UTF-8, ``"data":…`` or ``"data_base64":"…"``,
            without line breaks.  An event of a task has the member ``"task":{…}`` after it.  The
            envelope contains it unchanged.
    """

    account: str
    id: str
    key: str
    type: str
    time: str
    content_type: str
    payload: bytes


class Event(NamedTuple):
    """
    One result, or progress report, with its place in the account's history.

    Attributes:
        epoch: Empty if the event is in no history: it was only for the subscribers that were
            connected to one instance at that moment.
        time: RFC 3339 in UTC.
        payload: See `Draft`.
    """

    account: str
    epoch: str
    seq: int
    id: str
    type: str
    time: str
    content_type: str
    payload: bytes

    @property
    def cursor(self) -> Cursor:
        """The place of this event."""
        return Cursor(self.epoch, self.seq)

    @property
    def data(self) -> Any:
        """
        The result: the value of JSON, str for text, bytes for everything else.

        It is parsed at each access.

        Raises:
            ValueError: It has a number of more digits than Python reads (4300).  Browsers read such
                a number as infinity.
        """
        member: dict[str, Any] = json.loads(b"{%b}" % self.payload)
        if "data_base64" in member:
            return b64decode(member["data_base64"])
        return member["data"]

    @property
    def task(self) -> dict[str, Any] | None:
        """
        Which task it belongs to: ``task``, ``run``, ``state`` and ``done``; None if to none.

        It is parsed at each access.
        """
        if not self.type.startswith(TASK_TYPES):
            return None
        member: dict[str, Any] | None = json.loads(b"{%b}" % self.payload).get("task")
        return member

    @classmethod
    def from_draft(cls, draft: Draft, epoch: str, seq: int) -> Event:
        """Return the event that `draft` becomes at this place of its account's history."""
        account, id, _, type, time, content_type, payload = draft
        # Every accepted event passes here: this takes two thirds of the time of `cls(...)`.
        return tuple.__new__(cls, (account, epoch, seq, id, type, time, content_type, payload))


class Stored(NamedTuple):
    """
    An event that is in the history.

    Attributes:
        duplicate: Whether an earlier draft had the same key.  Then `event` is the earlier one's.
    """

    event: Event
    duplicate: bool


class Instance(NamedTuple):
    """
    One running process, as the others see it.

    Attributes:
        url: Where it receives what the others relay.  The hook of an account is
            ``{url}/hooks/{account}``, percent-encoded.
        lease: Changes with every renewal.  An instance that removes a dead one names the lease that
            it saw, so that it does not remove one that has come back.
    """

    id: str
    url: str
    lease: str = ""


def timestamp(seconds: float) -> str:
    """Return `seconds` since 1970 as RFC 3339 in UTC, to the millisecond."""
    return _timestamp(int(seconds * 1000))


@lru_cache(maxsize=4)
def _timestamp(milliseconds: int) -> str:
    second, thousandth = divmod(milliseconds, 1000)
    # strftime would write the year 999 with three digits.
    return f"{datetime.fromtimestamp(second, UTC).isoformat()[:19]}.{thousandth:03d}Z"


_PROCESS = token_hex(10)
_numbers = count(1)


def new_id() -> str:
    """Return an id for an event that has none: a random prefix of this process, and a number."""
    return f"{_PROCESS}{next(_numbers):012x}"
