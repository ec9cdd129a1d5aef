"""Every transport keeps the contract of subscribers on SQLite and on MongoDB."""

from __future__ import annotations

from twisted.trial.unittest import TestCase

from tests.subscribers import ByLongPoll, BySse, ByWebSocket, OnMongo, OnSqlite


class WebSocketOnSqliteTests(ByWebSocket, OnSqlite, TestCase):
    """WebSocket, and SQLite."""


class WebSocketOnMongoTests(ByWebSocket, OnMongo, TestCase):
    """WebSocket, and MongoDB."""


class SseOnSqliteTests(BySse, OnSqlite, TestCase):
    """Server-Sent Events, and SQLite."""


class SseOnMongoTests(BySse, OnMongo, TestCase):
    """Server-Sent Events, and MongoDB."""


class LongPollOnSqliteTests(ByLongPoll, OnSqlite, TestCase):
    """Long-poll, and SQLite."""


class LongPollOnMongoTests(ByLongPoll, OnMongo, TestCase):
    """Long-poll, and MongoDB."""
