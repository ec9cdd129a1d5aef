"""
The HTTP request that sends an event: where it goes, and as whom.

Shared by all senders.  Needs only the standard library.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from asyncplumber.sending import DEFAULT_TYPE, Key, Time, encode, is_header_value, key_text, message

_VISIBLE = re.compile("[!-~]+")


class Request(NamedTuple):
    """One request, the same in each attempt: an event or a report as a POST, or a question."""

    id: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    method: str = "POST"


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

    def get(self, *segments: Key, query: str = "") -> Request:
        """Build a GET of the path that has these segments, and this query."""
        return Request("", self._path(segments) + query, self._headers, b"", "GET")

    def post(self, *segments: Key, data: Any) -> Request:
        """Build a POST of JSON to the path that has these segments."""
        kind, body = encode(data)
        return Request("", self._path(segments), {**self._headers, "Content-Type": kind}, body)

    def _path(self, segments: tuple[Key, ...]) -> str:
        return self._prefix + "".join(f"/{quote(str(each), safe='')}" for each in segments)

    def report(
        self,
        account: Key,
        key: Key,
        state: str,
        data: Any = b"",
        *,
        content_type: str | None = None,
        deadline: float | None = None,
        time: Time | None = None,
    ) -> Request:
        """
        Build the request for one report of a task.

        Args:
            account: Who waits for the task.
            key: The name of the task.
            state: How far it is: ``started``, ``running``, ``completed``, ``failed``, ``canceled``.
            data: Its progress, its result or its error.  Empty bytes say only that it goes on.
            content_type: As for ``request``.
            deadline: Seconds without a report after which the task counts as lost; 0 is never.
                None leaves it to the server.
            time: When it happened; None is when it arrives.

        Raises:
            ValueError, TypeError: It cannot be sent.
        """
        name = key_text("key", key)
        if not name or any(character < " " or character == "\x7f" for character in name):
            raise ValueError("the key of a task has characters, and none of them is control")
        request = self.request(account, data, content_type=content_type, time=time)
        headers = {**request.headers, "Task": _utf_8(name), "Task-State": state}
        del headers["Event-Type"]  # the state says it
        if deadline is not None:
            headers["Task-Deadline"] = f"{deadline:g}"
        return request._replace(headers=headers)


def with_run(request: Request, run: str) -> Request:
    """Return the report with the id of the run that it means."""
    return request._replace(headers={**request.headers, "Task-Run": _utf_8(run)})


def _utf_8(text: str) -> str:
    """Return the text that ``http.client``, which encodes headers in latin-1, sends as UTF-8."""
    return text.encode().decode("latin-1")
