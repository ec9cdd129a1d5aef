"""What a stranger may do at most: the table ``[limits]`` of the ``--auth`` file, with defaults."""

from __future__ import annotations

from typing import NamedTuple

from asyncplumber.auth.limits.rates import Rate
from asyncplumber.auth.table import Table

_MIB = 1024 * 1024
_MOST = 2**40
_PERIODS = {"per_second": 1, "per_minute": 60, "per_hour": 3600}  # in seconds


class LimitSettings(NamedTuple):
    """
    The limits of one process.  None stands for no limit.

    An address is that of a client; of IPv6 it is the /64 network.  A subject is the
    name that a credential gives its client.  A client without one is known by its address alone.

    Attributes:
        connections_per_address: Connections that are open; behind a trusted proxy, streams and
            long-polls that are.
        failures_per_address: Credentials that are bad.  An address beyond this is refused before
            its next credential is looked at, be that good or bad.
        handshakes_per_address: Streams that are opened.
        polls_per_address: Long-polls that are asked.
        streams_per_subject: Streams and long-polls that are open.
        posts_per_subject: POSTs of events.
        posted_bytes_per_subject: Bytes of the bodies of these.
        posts_per_publisher: The same for each subject that may publish to every account.
        posted_bytes_per_publisher: The same in bytes.
        replayed_bytes_per_subject: Bytes that are read from the history for clients that resume.
        new_accounts_per_subject: Accounts that are subscribed to while nobody else is here.
        open_accounts_per_subject: Those of them that are open.
        new_accounts_per_address: The same as for a subject, for clients without a credential.
    """

    connections_per_address: int | None = 200
    failures_per_address: Rate | None = Rate(20, 1 / 3)
    handshakes_per_address: Rate | None = Rate(50, 10)
    polls_per_address: Rate | None = Rate(500, 100)
    streams_per_subject: int | None = 50
    posts_per_subject: Rate | None = Rate(5000, 500)
    posted_bytes_per_subject: Rate | None = Rate(64 * _MIB, 8 * _MIB)
    posts_per_publisher: Rate | None = None
    posted_bytes_per_publisher: Rate | None = None
    replayed_bytes_per_subject: Rate | None = Rate(64 * _MIB, 8 * _MIB)
    new_accounts_per_subject: Rate | None = Rate(100, 1)
    open_accounts_per_subject: int | None = 1000
    new_accounts_per_address: Rate | None = Rate(10, 1 / 5)


NAMES = LimitSettings._fields
_COUNTS = ("connections_per_address", "streams_per_subject", "open_accounts_per_subject")
#: Where everybody is trusted, because no authentication is configured.
NO_LIMITS = LimitSettings(**dict.fromkeys(NAMES))


def from_toml(value: object) -> LimitSettings:
    """
    Return the limits that a table describes; what it does not name has its default.

    A number of things that are open is a number.  A rate is a table such as ``{burst = 20,
    per_minute = 20}``, with ``per_second``, ``per_minute`` or ``per_hour``.  ``false`` is no limit.

    Raises:
        ValueError: A key is unknown or wrong.
    """
    table = Table(value, "[limits]")
    found: dict[str, Rate | int | None] = {}
    for name in NAMES:
        if name not in table:
            continue
        given = table.take(name)
        if given is False:
            found[name] = None
        elif name in _COUNTS:
            if not isinstance(given, int) or isinstance(given, bool) or not 1 <= given <= _MOST:
                raise table.error(name, "is a whole number above 0, or false for no limit")
            found[name] = given
        else:
            found[name] = _rate(table, name, given)
    table.close()
    return LimitSettings(**found)  # type: ignore[arg-type]  # each name has its own type


def _rate(table: Table, name: str, given: object) -> Rate:
    example = "is a rate such as {burst = 20, per_minute = 20}, or false for no limit"
    if not isinstance(given, dict) or len(given) != 2 or "burst" not in given:
        raise table.error(name, example)
    (period,) = given.keys() - {"burst"}
    numbers = (given["burst"], given[period])
    if period not in _PERIODS or not all(
        isinstance(number, int | float) and not isinstance(number, bool) and 0 < number <= _MOST
        for number in numbers
    ):
        raise table.error(name, example)
    if given["burst"] < 1:
        raise table.error(name, "has a burst of 1 or more: else nothing would pass")
    return Rate(given["burst"], given[period] / _PERIODS[period])
