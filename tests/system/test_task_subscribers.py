"""Every transport tells of the live tasks, on SQLite and on MongoDB."""

from __future__ import annotations

from twisted.trial.unittest import TestCase

from tests.subscribers import OnMongo, OnSqlite
from tests.task_subscribers import TasksByLongPoll, TasksBySse, TasksByWebSocket


class WebSocketOnSqliteTests(TasksByWebSocket, OnSqlite, TestCase):
    """WebSocket, and SQLite."""


class WebSocketOnMongoTests(TasksByWebSocket, OnMongo, TestCase):
    """WebSocket, and MongoDB."""


class SseOnSqliteTests(TasksBySse, OnSqlite, TestCase):
    """Server-Sent Events, and SQLite."""


class SseOnMongoTests(TasksBySse, OnMongo, TestCase):
    """Server-Sent Events, and MongoDB."""


class LongPollOnSqliteTests(TasksByLongPoll, OnSqlite, TestCase):
    """Long-poll, and SQLite."""


class LongPollOnMongoTests(TasksByLongPoll, OnMongo, TestCase):
    """Long-poll, and MongoDB."""
