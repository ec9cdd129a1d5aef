"""
The envelope: the JSON object in which every transport carries an event.

Notices about a stream have the same form.
"""

from __future__ import annotations

import json
from json.encoder import encode_basestring_ascii as quoted
from typing import Any

from asyncplumber.event import Cursor, Event, Position

# json.dumps would make an encoder at each call.
_encoded = json.JSONEncoder(separators=(",", ":")).encode


def envelope(event: Event) -> bytes:
    """
    Return the envelope of an event: JSON in UTF-8, in one line.

    The cursor is null if the event is in no history, which an empty epoch says.
    """
    account, epoch, seq, id, type, time, content_type, payload = event
    cursor = f'"{epoch}.{seq}"' if epoch else "null"
    return b"%b%b}" % (
        (
            f'{{"id":{quoted(id)},"account":{quoted(account)},"cursor":{cursor},'
            f'"type":{quoted(type)},"time":"{time}","content_type":{quoted(content_type)},'
        ).encode("ascii"),
        payload,
    )


def notice(type: str, account: str, cursor: Cursor | None, **data: Any) -> bytes:
    """
    Return the envelope of an event about the stream itself, which is in no history.

    Args:
        type: Its type; it begins with ``plumber.``.
        account: The account of the stream.
        cursor: The subscriber's position; None leaves it unchanged.
        data: Its data, which JSON can express.
    """
    text = str(cursor) if cursor is not None else None
    return _encoded({"type": type, "account": account, "cursor": text, "data": data}).encode()


def gap(account: str, cursor: Cursor, position: Position) -> bytes:
    """
    Return the notice ``plumber.gap``: events were missed that cannot be replayed.

    Its data is ``from`` and ``to``, the cursors between which events were missed, and ``oldest``,
    the cursor of the oldest event that is still kept.  A client that wants that one and all after
    it subscribes again with ``after=earliest``.

    Args:
        account: The account of the stream.
        cursor: The subscriber's position before.
        position: How far the history reaches; its head is the subscriber's position now.
    """
    oldest = None
    if position.head > position.floor:
        oldest = str(Cursor(position.epoch, position.floor + 1))
    head = position.cursor
    return notice(
        "plumber.gap", account, head, **{"from": str(cursor), "to": str(head), "oldest": oldest}
    )
