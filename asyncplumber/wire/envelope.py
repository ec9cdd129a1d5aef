"""
The envelope: the JSON object in which every transport carries an event, and the notices about a
stream.
"""

from __future__ import annotations

import json
from json.encoder import encode_basestring_ascii as quoted
from typing import Any

from asyncplumber.event import Cursor, Event, Position

_encoded = json.JSONEncoder(
    separators=(",", ":")
).encode  # json.dumps would make an encoder at each call


def envelope(event: Event) -> bytes:
    """
    The JSON text, UTF-8 in one line, that tells a subscriber everything about an event (no epoch:
    it is in no history).
    """
    account, epoch, seq, id, type, time, content_type, payload = event
    cursor = f'"{epoch}.{seq}"' if epoch else "null"
    return b"%b%b}" % (
        (
            f'{{"id":{quoted(id)},"account":{quoted(account)},"cursor":{cursor},"type":{quoted(type)},'
            f'"time":"{time}","content_type":{quoted(content_type)},'
        ).encode("ascii"),
        payload,
    )


def notice(type: str, account: str, cursor: Cursor | None, **data: Any) -> bytes:
    """
    The envelope of an event about the stream itself: in no history; `cursor` says where you stand,
    None that you know.
    """
    stand = str(cursor) if cursor is not None else None
    return _encoded({"type": type, "account": account, "cursor": stand, "data": data}).encode()


def gap(account: str, cursor: Cursor, position: Position) -> bytes:
    """
    The notice ``plumber.gap``: nothing between `cursor` and the head of the history will be
    replayed.

    ``oldest`` is the first event that is still kept, or null; who wants it subscribes anew with
    ``after=earliest``.
    """
    oldest = (
        str(Cursor(position.epoch, position.floor + 1)) if position.head > position.floor else None
    )
    stand = position.cursor
    return notice(
        "plumber.gap", account, stand, **{"from": str(cursor), "to": str(stand), "oldest": oldest}
    )
