"""Callback URLs in MongoDB, in the collection of this name."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from twisted.internet.defer import Deferred
from zope.interface import implementer

from asyncplumber.clocks import TimeSource
from asyncplumber.interfaces import REMEMBERED_URL, CallbackUrl, ICallbackUrls
from asyncplumber.stores.mongo.link import Document, MongoLink

_REMAINS = 3600  # seconds after which the server removes a row if nobody sweeps
_LATEST = 253_402_300_799.0  # the last second of the year 9999: dates end there
_NAMES = (
    "account", "task", "run", "ends", "scheme", "secret", "pointer", "type_prefix", "id",
)  # fmt: skip

INDEXES: list[tuple[str, Document]] = [
    ("callback_urls", {"name": "id", "key": {"account": 1, "id": 1}}),
    ("callback_urls", {"name": "run", "key": {"account": 1, "task": 1, "run": 1}}),
    (
        "callback_urls",
        {
            "name": "expires_at",
            "key": {"expires_at": 1},
            "expireAfterSeconds": int(REMEMBERED_URL) + _REMAINS,
        },
    ),
]


def _times(expires_at: float) -> Document:
    """Return the exact time, and the date by which the server removes the row."""
    return {"expires": expires_at, "expires_at": _date(expires_at)}


def _date(seconds: float) -> datetime:
    return datetime.fromtimestamp(min(seconds, _LATEST), UTC)


def _url(row: Document) -> CallbackUrl:
    fields = {name: row[name] for name in _NAMES}
    return CallbackUrl(digest=row["_id"], expires_at=row["expires"], **fields)


@implementer(ICallbackUrls)
class MongoCallbackUrls:
    """The callback URLs of all instances with the same database."""

    def __init__(self, link: MongoLink, clock: TimeSource) -> None:
        self._link = link
        self._clock = clock

    def add(self, url: CallbackUrl) -> Deferred[None]:
        fields: dict[str, Any] = {name: getattr(url, name) for name in _NAMES}
        return self._update({"_id": url.digest}, {**fields, **_times(url.expires_at)}, upsert=True)

    def _update(self, which: Document, fields: Document, **options: bool) -> Deferred[None]:
        update = {"q": which, "u": {"$set": fields}, **options}

        async def work(deadline: float) -> None:
            await self._link.change(deadline, {"update": "callback_urls", "updates": [update]})

        return self._link.call(work)

    def get(self, digest: bytes) -> Deferred[CallbackUrl | None]:
        async def work(deadline: float) -> CallbackUrl | None:
            rows = await self._find(deadline, {"_id": digest}, 1)
            return _url(rows[0]) if rows else None

        return self._link.call(work)

    async def _find(self, deadline: float, which: Document, limit: int) -> list[Document]:
        body = {
            "find": "callback_urls",
            "filter": which,
            "sort": {"id": 1},
            "limit": limit,
            "batchSize": limit,
            "singleBatch": True,
        }
        return await self._link.rows(deadline, body)

    def of_account(self, account: str, limit: int) -> Deferred[list[CallbackUrl]]:
        async def work(deadline: float) -> list[CallbackUrl]:
            which = {"account": account, "expires": {"$gt": self._clock.seconds()}}
            return list(map(_url, await self._find(deadline, which, limit)))

        return self._link.call(work)

    def remove(self, account: str, id: str) -> Deferred[bool]:
        return self._delete({"account": account, "id": id}).addCallback(bool)

    def _delete(self, which: Document) -> Deferred[int]:
        async def work(deadline: float) -> int:
            deletes = [{"q": which, "limit": 0}]
            body = {"delete": "callback_urls", "deletes": deletes}
            return int((await self._link.change(deadline, body))["n"])

        return self._link.call(work)

    def expire(self, account: str, task: str, run: str, at: float) -> Deferred[None]:
        which = {"account": account, "task": task, "run": run, "expires": {"$gt": at}}
        return self._update(which, _times(at), multi=True)

    def sweep(self) -> Deferred[int]:
        return self._delete({"expires_at": {"$lt": _date(self._clock.seconds() - REMEMBERED_URL)}})
