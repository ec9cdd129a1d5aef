"""
Long-polls of clients that come through somebody else's twisted.web site, which `Plumber.resource`
is mounted in.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs

from twisted.internet.defer import Deferred

from asyncplumber.core.channel import Channel
from asyncplumber.core.hub import Hub
from asyncplumber.errors import NotImplementedHere
from asyncplumber.event import Cursor
from asyncplumber.http.listener import Listener
from asyncplumber.http.responses import Response, poll_response
from asyncplumber.http.webhook import account_of
from asyncplumber.transports.long_poll import LongPoll
from asyncplumber.wire.parse import Headers


class MountedPolls:
    """Those that wait."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._polls: set[LongPoll] = set()

    def answer(self, request: Any, headers: Headers, segment: bytes) -> Deferred[Response]:
        """
        Serve the account of this path segment.  Raises a `PlumberError`.

        Streams need our own server: 501 sends the browser's client to its next transport.
        """
        if b"upgrade" in headers or b"text/event-stream" in headers.get(b"accept", b""):
            raise NotImplementedHere("events are served by long-poll here")
        query = request.uri.partition(b"?")[2].decode("ascii", "replace")
        fields = parse_qs(query, keep_blank_values=True)
        after, wait = Listener.resume_point(headers, fields), Listener.wait_in(fields)
        ended: list[Any] = []
        request.notifyFinish().addBoth(ended.append)
        return self._hub.admit(account_of(segment)).addCallback(
            self._serve, request, ended, after, wait
        )

    def _serve(
        self,
        channel: Channel,
        request: Any,
        ended: list[Any],
        after: Cursor | str | None,
        wait: float,
    ) -> Deferred[Response]:
        poll = LongPoll(channel, self._hub.clock, wait)
        if ended:
            poll.cancel()  # the client has gone
            return poll.result.addCallback(poll_response)

        def leave(_: Any) -> None:
            self._polls.discard(poll)
            poll.cancel()

        self._polls.add(poll)
        request.notifyFinish().addBoth(leave)
        poll.start(after)
        return poll.result.addCallback(poll_response)

    def dismiss(self) -> None:
        """Response all that wait."""
        for poll in list(self._polls):
            poll.end(None)
