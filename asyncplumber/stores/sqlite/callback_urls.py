"""Callback URLs in a SQLite file."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from zope.interface import implementer

from asyncplumber.clocks import TimeSource
from asyncplumber.interfaces import REMEMBERED_URL, CallbackUrl, ICallbackUrls
from asyncplumber.stores.sqlite.connect import Connection
from asyncplumber.stores.sqlite.file import SqliteFile

# The order of the columns is that of the attributes.
_ADD = "INSERT OR REPLACE INTO callback_urls VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_GET = "SELECT * FROM callback_urls WHERE digest = ?"
_OF_ACCOUNT = "SELECT * FROM callback_urls WHERE account = ? AND expires > ? ORDER BY id LIMIT ?"
_REMOVE = "DELETE FROM callback_urls WHERE account = ? AND id = ?"
_EXPIRE = (
    "UPDATE callback_urls SET expires = ?1"
    " WHERE account = ?2 AND task = ?3 AND run = ?4 AND expires > ?1"
)
_SWEEP = "DELETE FROM callback_urls WHERE expires < ?"


def _url(row: tuple[Any, ...]) -> CallbackUrl:
    digest, account, expires, task, run, ends, *rest = row
    return CallbackUrl(digest, account, expires, task, run, bool(ends), *rest)


@implementer(ICallbackUrls)
class SqliteCallbackUrls:
    """The callback URLs of all processes that share the file."""

    def __init__(self, file: SqliteFile, clock: TimeSource) -> None:
        self._read = file.run
        self._write = file.write
        self._clock = clock

    def add(self, url: CallbackUrl) -> Deferred[None]:
        values = (
            url.digest,
            url.account,
            url.expires_at,
            url.task,
            url.run,
            url.ends,
            url.scheme,
            url.secret,
            url.pointer,
            url.type_prefix,
            url.id,
        )

        def work(connection: Connection) -> None:
            connection.execute(_ADD, values)

        return self._write(work)

    def get(self, digest: bytes) -> Deferred[CallbackUrl | None]:
        def work(connection: Connection) -> CallbackUrl | None:
            row = connection.execute(_GET, (digest,)).fetchone()
            return _url(row) if row is not None else None

        return self._read(work)

    def of_account(self, account: str, limit: int) -> Deferred[list[CallbackUrl]]:
        values = (account, self._clock.seconds(), limit)
        return self._read(
            lambda connection: list(map(_url, connection.execute(_OF_ACCOUNT, values)))
        )

    def remove(self, account: str, id: str) -> Deferred[bool]:
        return self._write(
            lambda connection: connection.execute(_REMOVE, (account, id)).rowcount > 0
        )

    def expire(self, account: str, task: str, run: str, at: float) -> Deferred[None]:
        def work(connection: Connection) -> None:
            connection.execute(_EXPIRE, (at, account, task, run))

        return self._write(work)

    def sweep(self) -> Deferred[int]:
        horizon = self._clock.seconds() - REMEMBERED_URL
        return self._write(lambda connection: connection.execute(_SWEEP, (horizon,)).rowcount)
