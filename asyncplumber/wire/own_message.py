"""The event that the application itself sends, as one that was POSTed."""

from __future__ import annotations

from asyncplumber.errors import BadRequest, TooLarge
from asyncplumber.event import Draft
from asyncplumber.sending import Message
from asyncplumber.wire.parse import drafts_of


def draft_of(message: Message, now: str, limit: int) -> Draft:
    """
    Return what the webhook would make of this message.

    Args:
        message: The event.
        now: Its time, if it has none of its own.
        limit: The most bytes of its body.

    Raises:
        TooLarge: The body is beyond the limit.
        BadRequest: It is refused by the webhook as well, or is more than one event.
    """
    if len(message.body) > limit:
        raise TooLarge(f"a body has at most {limit} bytes")
    headers = {name.lower().encode(): value.encode() for name, value in message.headers.items()}
    drafts = drafts_of(message.account, headers, message.body, now)
    if len(drafts) != 1:
        raise BadRequest("send takes one event; a batch can be posted to the webhook")
    return drafts[0]
