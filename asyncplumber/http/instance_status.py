"""What one instance tells the others, and the admin page, about itself: a JSON document."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from heapq import nlargest, nsmallest
from importlib.metadata import version
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlencode

from asyncplumber.auth.signatures import PeerSigner, question_target
from asyncplumber.core.hub import Hub
from asyncplumber.core.status import Status
from asyncplumber.errors import BadRequest, Gone, PlumberError
from asyncplumber.figures import Figures
from asyncplumber.http.refusals import Refusals
from asyncplumber.http.responses import Response, error_response, json_response
from asyncplumber.wire.fields import Headers

BUSIEST = 20  # accounts in a document, where no page of them is asked for
LARGEST_PAGE = 200  # accounts
MAX_PEERS = 100  # peers in a document, those with the most events waiting first


class AccountQuery(NamedTuple):
    """
    Which accounts are wanted.

    Attributes:
        search: Accounts in whose names this text is, in the order of their names.  None: those
            with the most subscribers.
        after: The last account of the page before; empty for the first page.
        limit: The largest number of accounts; 0 is for none.
    """

    search: str | None = None
    after: str = ""
    limit: int = BUSIEST

    @classmethod
    def parse(cls, query: Mapping[str, Sequence[str]]) -> AccountQuery:
        """
        Read the query of a URL.

        Raises:
            BadRequest: The limit is no number up to `LARGEST_PAGE`.
        """
        search, after = query.get("search", [None])[0], query.get("after", [""])[0]
        return cls(search, after, page_size(query, LARGEST_PAGE, BUSIEST, least=0))

    @property
    def text(self) -> str:
        """The query of a URL that `parse` reads."""
        named = {name: value for name, value in self._asdict().items() if value is not None}
        return urlencode(named)


def page_size(query: Mapping[str, Sequence[str]], most: int, usual: int, *, least: int = 1) -> int:
    """
    Return the ``limit`` of a query.

    Raises:
        BadRequest: It is no number from ``least`` to ``most``.
    """
    text = query.get("limit", [str(usual)])[0]
    if not (text.isascii() and text.isdigit() and len(text) < 10 and least <= int(text) <= most):
        raise BadRequest(f"limit is a number from {least} to {most}")
    return int(text)


def _numbers(figures: Figures) -> dict[str, float | None]:
    """Return the value of each figure; None for one that is not known."""
    values = {name: figure.value for name, figure in figures.items()}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


class InstanceStatus:
    """Makes the document, for this instance and for the others that ask for it."""

    def __init__(
        self,
        status: Callable[[], Status],
        hub: Hub,
        refusals: Refusals,
        signer: PeerSigner,
        now: Callable[[], float],
        *,
        hooks: bool,
    ) -> None:
        """
        Args:
            status: Returns what this instance knows about itself, without its accounts.
            hub: Has the channels of its accounts.
            refusals: The requests that it refused.
            signer: Verifies what other instances ask.
            now: Returns the seconds since 1970.
            hooks: Whether each account has a hook in the registry.
        """
        self._status = status
        self._hub = hub
        self._hooks = hooks
        self._refusals = refusals
        self._signer = signer
        self._now = now
        self._began = now()
        self._host = socket.gethostname()

    @property
    def id(self) -> str:
        """The id of this instance."""
        return self._status().instance_id

    def document(self, query: AccountQuery = AccountQuery()) -> dict[str, Any]:
        """Return what this instance tells about itself now.  It is bounded; see `AccountQuery`."""
        status, now = self._status(), self._now()
        peers = nlargest(MAX_PEERS, status.peers, key=lambda peer: peer.queued)
        return {
            "id": status.instance_id,
            "url": status.advertise_url,
            "state": status.state.value,
            "host": self._host,
            "pid": os.getpid(),
            "worker": status.worker,
            "version": version("asyncplumber"),
            "time": now,
            "uptime": now - self._began,
            "figures": _numbers(status.figures),
            "account_count": len(self._hub.accounts),
            "accounts": [self._account(name) for name in self._selected(query)],
            "peers": [
                {
                    "id": peer.instance_id,
                    "url": peer.url,
                    "queued": peer.queued,
                    "failures": peer.failures,
                }
                for peer in peers
            ],
            "refusals": [refusal._asdict() for refusal in self._refusals.recent()],
        }

    def _selected(self, query: AccountQuery) -> list[str]:
        """Return the accounts that are wanted; only these are looked at, of very many."""
        search, after, limit = query
        hub = self._hub
        if not limit:
            return []
        if search is None:
            return nlargest(limit, hub.accounts, key=hub.count)
        return nsmallest(limit, [name for name in hub.accounts if name > after and search in name])

    def _account(self, name: str) -> dict[str, Any]:
        subscribers, cursor = self._hub.place(name)
        return {
            "account": name,
            "subscribers": subscribers,
            "cursor": None if cursor is None else str(cursor),
            "hook": self._hooks,
        }

    def answer(self, instance_id: str, query: str, headers: Headers) -> Response:
        """
        Answer ``GET /instances/{instance_id}/status``, which only other instances may ask.

        Args:
            instance_id: The instance that is meant.
            query: The query of the URL, as it was sent.
            headers: With names in lower case.
        """
        try:
            if instance_id != self.id:
                raise Gone("another instance answers at this address")
            path = f"/status?{query}" if query else "/status"
            self._signer.check(question_target(instance_id, path), headers, b"", self._now())
            wanted = AccountQuery.parse(parse_qs(query, keep_blank_values=True))
            return json_response(200, self.document(wanted))
        except PlumberError as error:
            return error_response(error)
