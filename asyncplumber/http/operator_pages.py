"""
What the admin page shows and does, below ``/admin/``.

The page itself is static.  Its script asks for the documents here.  Whoever may use the page may
also read and post events of every account, at ``/admin/events/{account}`` and
``/admin/hooks/{account}``: the gate takes ``/admin`` off such a path.
"""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Awaitable, Callable, Mapping, Sequence

from twisted.internet.defer import Deferred, fail, succeed

from asyncplumber.auth.signatures import PeerSigner
from asyncplumber.core.hub import Hub
from asyncplumber.core.status import Status
from asyncplumber.errors import BadRequest, NotFound
from asyncplumber.http.admin_files import admin_files
from asyncplumber.http.cluster import Cluster
from asyncplumber.http.gate import Gate
from asyncplumber.http.instance_status import AccountQuery, InstanceStatus, page_size
from asyncplumber.http.refusals import Refusals
from asyncplumber.http.responses import Response, json_response
from asyncplumber.interfaces import Hook, HookQuery, IStore
from asyncplumber.relays.questions import Questions

Query = Mapping[str, Sequence[str]]

LARGEST_PAGE = 500  # hooks
USUAL_PAGE = 100
_NO_STORE = (b"Cache-Control", b"no-store")


class OperatorPages:
    """Responds to the admin page, and keeps what it shows of this instance."""

    def __init__(
        self,
        status: Callable[[], Status],
        hub: Hub,
        store: IStore,
        gate: Gate,
        signer: PeerSigner,
        questions: Questions,
        now: Callable[[], float],
    ) -> None:
        """
        Args:
            status: Returns what this instance knows about itself, without its accounts.
            hub: Has the channels of its accounts.
            store: Has the accounts, the instances and their hooks.
            gate: Tells which requests it refuses, and whether there is authentication.
            signer: Verifies what other instances ask.
            questions: Asks the other instances.
            now: Returns the seconds since 1970.
        """
        refusals = Refusals(now)
        gate.requests.on_refused.append(refusals.note)
        #: What this instance tells the others.
        self.own = InstanceStatus(status, hub, refusals, signer, now, hooks=store.shared)
        registry = store.registry if store.shared else None
        self._cluster = Cluster(
            self.own,
            store.history,
            registry,
            questions,
            has_authentication=gate.authority is not None,
        )
        self._files = admin_files()
        self._documents: Mapping[str, Callable[[Query], Awaitable[object]]] = {
            "cluster": self._overview,
            "accounts": self._accounts,
            "hooks": self._hooks,
        }

    def get(self, name: str, query: Query) -> Deferred[Response]:
        """
        Respond to ``GET /admin/{name}``.

        The Deferred fails with `NotFound`, `BadRequest` or `Unavailable`.
        """
        if name in self._files:
            return succeed(self._files[name])
        if name not in self._documents:
            return fail(NotFound())
        return Deferred.fromCoroutine(self._document(name, query))

    async def _document(self, name: str, query: Query) -> Response:
        return json_response(200, await self._documents[name](query), _NO_STORE)

    async def _overview(self, query: Query) -> object:
        return await self._cluster.overview()

    async def _accounts(self, query: Query) -> object:
        page_size(query, LARGEST_PAGE, USUAL_PAGE)  # a page has one account at least
        return await self._cluster.accounts(AccountQuery.parse(query))

    async def _hooks(self, query: Query) -> object:
        limit = page_size(query, LARGEST_PAGE, USUAL_PAGE)
        instance_id = query.get("instance", [""])[0] or None
        prefix, after = query.get("prefix", [""])[0], _hook(query.get("after", [""])[0])
        hooks = await self._cluster.hooks(HookQuery(prefix, instance_id, after, limit))
        return {
            "hooks": [
                {"account": account, "instance": instance, "url": url}
                for account, instance, url in hooks
            ],
            "next": _token(hooks[-1]) if len(hooks) == limit else None,
        }


def _token(hook: Hook) -> str:
    """Return the place of a hook as a page of hooks tells it."""
    return urlsafe_b64encode(json.dumps(hook).encode("ascii")).decode("ascii")


def _hook(token: str) -> Hook | None:
    """Return what `_token` was made of; None for an empty one.  Raises `BadRequest`."""
    if not token:
        return None
    try:
        account, instance_id, url = json.loads(urlsafe_b64decode(token))
        # Three texts, and no lone surrogate, which no store can look for.
        "".join((account, instance_id, url)).encode()
    except (ValueError, TypeError, RecursionError):
        raise BadRequest("after is what the page before gave as next") from None
    return Hook(account, instance_id, url)
