"""
Values that travel through the house.  All are immutable; those of the hot path are named tuples,
the cheapest kind.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from functools import lru_cache
from itertools import count
from secrets import token_hex
from typing import Any, NamedTuple

from asyncplumber.errors import BadAccount, BadCursor

ACCOUNT_LENGTH = (
    256  # characters; as long as the longest e-mail address or two UUIDs with a prefix need
)
NAME_LENGTH = 256  # characters of an event's id or type: they travel in headers, so they stay short
RESERVED_TYPES = "plumber."  # types of events about the stream itself begin so
EARLIEST = "earliest"

_CURSOR = re.compile(r"([0-9a-z]{1,32})\.(0|[1-9][0-9]{0,17})")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def is_plain(text: str, longest: int = NAME_LENGTH) -> bool:
    """
    Whether `text` is 1 to `longest` characters with no control character, line separator or lone
    surrogate.
    """
    return 0 < len(text) <= longest and not _CONTROL.search(text)


@lru_cache(maxsize=8192)
def checked_account(name: str) -> str:
    """`name` itself if it can be an account.  Raises `BadAccount`."""
    if not is_plain(name, ACCOUNT_LENGTH):
        raise BadAccount
    return name


class Cursor(NamedTuple):
    """The place of an event in its account's history; `seq` 0 is the place before the first."""

    epoch: str
    seq: int

    def __str__(self) -> str:
        return f"{self.epoch}.{self.seq}"

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Read ``epoch.seq``.  Raises `BadCursor` for anything that no history gave out."""
        match = _CURSOR.fullmatch(text)
        if match is None:
            raise BadCursor
        return cls(match[1], int(match[2]))


class Position(NamedTuple):
    """
    How far an account's history reaches: the events ``floor < seq <= head`` of `epoch` can be read.
    """

    epoch: str
    head: int
    floor: int

    @property
    def cursor(self) -> Cursor:
        """Where a subscriber stands who has seen everything."""
        return Cursor(self.epoch, self.head)


class Draft(NamedTuple):
    """
    A result that was understood but has no place in the history yet.

    `payload` is one JSON object member as UTF-8 bytes, ``"data":…`` or ``"data_base64":"…"``,
    without line breaks: it is spliced into the envelope as it stands.  `key` is what makes two
    POSTs the same event; it is the id, but for a CloudEvent, whose id is unique only together with
    its source.  `time` is RFC 3339 in UTC.
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
    One result (or progress report) with its place in the account's history.  For `payload` see
    `Draft`.

    An empty `epoch` says that it is in no history: it was meant for those connected to one instance
    at that moment.
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
        """Where a subscriber stands who has seen this event."""
        return Cursor(self.epoch, self.seq)

    @property
    def data(self) -> Any:
        """
        The result: what JSON says, or str for text, or bytes for everything else.  Parsed at each
        call.

        Raises ValueError for a number of more digits than Python takes in (4300); browsers make it
        infinite.
        """
        member: dict[str, Any] = json.loads(b"{%b}" % self.payload)
        if "data_base64" in member:
            from base64 import b64decode

            return b64decode(member["data_base64"])
        return member["data"]

    @classmethod
    def from_draft(cls, draft: Draft, epoch: str, seq: int) -> Event:
        """Return the event that `draft` becomes at this place of its account's history."""
        account, id, _, type, time, content_type, payload = draft
        # Every accepted event passes here: this takes two thirds of the time of `cls(...)`.
        return tuple.__new__(cls, (account, epoch, seq, id, type, time, content_type, payload))


class Stored(NamedTuple):
    """
    What a history says of an appended draft: the event, and whether it was there before (then it is
    the old one).
    """

    event: Event
    duplicate: bool


class Instance(NamedTuple):
    """
    One running process, as the others see it.

    `url` is where it takes in what the others relay; the hook of an account is
    ``{url}/hooks/{account}``, percent-encoded. `lease` changes with every renewal: whoever wants to
    remove a dead instance names the lease it saw.
    """

    id: str
    url: str
    lease: str = ""


def timestamp(seconds: float) -> str:
    """`seconds` since 1970 as RFC 3339 in UTC, to the millisecond."""
    return _timestamp(int(seconds * 1000))


@lru_cache(maxsize=4)
def _timestamp(milliseconds: int) -> str:
    second, thousandth = divmod(milliseconds, 1000)
    # Not strftime, which writes the year 999 with three digits.
    return f"{datetime.fromtimestamp(second, UTC).isoformat()[:19]}.{thousandth:03d}Z"


_PROCESS = token_hex(10)
_numbers = count(1)


def new_id() -> str:
    """An id for an event that came without one: this process's own random prefix, and a number."""
    return f"{_PROCESS}{next(_numbers):012x}"
