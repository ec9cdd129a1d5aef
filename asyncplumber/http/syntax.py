"""What a request may look like, on the fast path and on the full path alike."""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

from asyncplumber.errors import BadAccount
from asyncplumber.event import checked_account

METHODS = frozenset(
    {b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE", b"CONNECT"}
)

# Control characters, which no header may have.  Twisted and Autobahn each split headers at others
# of these bytes, so that a request would mean different things to them (CVE-2026-44546 in daphne).
AMBIGUOUS_BYTES = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f\x85]")
AMBIGUOUS_HEADER = "a header has a byte that not every server reads alike"
AMBIGUOUS_PATH = "the path has a byte that not every server reads alike"
UPGRADE_WITH_BODY = "a WebSocket handshake has no body"

_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")  # RFC 3986, 2.1


def account_of(segment: bytes) -> str:
    """
    Return the account that a raw path segment names.

    Raises:
        BadAccount: The segment names none.
    """
    if segment.isalnum():
        return checked_account(segment.decode("ascii"))
    # `unquote_to_bytes` keeps a malformed escape as it is, so that `%zz` would be an account.
    if b"/" in segment or _BAD_ESCAPE.search(segment):
        raise BadAccount
    try:
        return checked_account(unquote_to_bytes(segment).decode())
    except UnicodeDecodeError:
        raise BadAccount from None
