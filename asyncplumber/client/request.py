"""
The HTTP request that sends an event: where it goes, and as whom.

Shared by all senders.  Needs only the standard library.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from asyncplumber.sending import DEFAULT_TYPE, Key, Time, is_header_value, message

_VISIBLE = re.compile("[!-~]+")


class Request(NamedTuple):
    """One event as a POST, the same in each attempt."""

    id: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class Endpoint:
    """The plumber that events are sent to."""

    def __init__(self, url: str, token: str | None, headers: Mapping[str, str] | None) -> None:
        """
        Args:
            url: Where the plumber is, such as ``http://127.0.0.1:8080``.
            token: Sent as ``Authorization: Bearer``; None sends no such header.
            headers: Added to each request.

        Raises:
            ValueError: One of them cannot be used.  The message repeats no secret.
        """
        parts = urlsplit(url)
        is_http = parts.scheme in ("http", "https")
        if not is_http or not parts.hostname or not _VISIBLE.fullmatch(url):
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
            if not (_VISIBLE.fullmatch(name) and ":" not in name and is_header_value(value)):
                raise ValueError(f"the header {name!r} cannot be sent: visible ASCII only")

    def request(
        self,
        account: Key,
        data: Any,
        *,
        id: Key | None = None,
        type: str = DEFAULT_TYPE,
        content_type: str | None = None,
        time: Time | None = None,
    ) -> Request:
        """
        Build the request for one event.

        Raises:
            ValueError, TypeError: It cannot be sent; see ``asyncplumber.sending.message``.
        """
        event = message(account, data, id=id, type=type, content_type=content_type, time=time)
        path = f"{self._prefix}/hooks/{quote(event.account, safe='')}"
        return Request(event.id, path, {**self._headers, **event.headers}, event.body)
