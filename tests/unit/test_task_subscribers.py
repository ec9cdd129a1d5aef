"""Every transport tells of the live tasks, on stores in memory."""

from __future__ import annotations

from twisted.trial.unittest import TestCase

from harness.mounted import MountedServer
from tests.subscribers import OnDelayed, OnMemory
from tests.task_subscribers import (
    MemoryOnlyContract,
    TasksByLongPoll,
    TasksBySse,
    TasksByWebSocket,
)


class WebSocketOnMemoryTests(TasksByWebSocket, MemoryOnlyContract, OnMemory, TestCase):
    """WebSocket, and a store that answers at once."""


class WebSocketOnDelayedTests(TasksByWebSocket, MemoryOnlyContract, OnDelayed, TestCase):
    """WebSocket, and a store that answers some turns later."""


class SseOnMemoryTests(TasksBySse, MemoryOnlyContract, OnMemory, TestCase):
    """Server-Sent Events, and a store that answers at once."""


class SseOnDelayedTests(TasksBySse, MemoryOnlyContract, OnDelayed, TestCase):
    """Server-Sent Events, and a store that answers some turns later."""


class LongPollOnMemoryTests(TasksByLongPoll, MemoryOnlyContract, OnMemory, TestCase):
    """Long-poll, and a store that answers at once."""


class LongPollOnDelayedTests(TasksByLongPoll, MemoryOnlyContract, OnDelayed, TestCase):
    """Long-poll, and a store that answers some turns later."""


class MountedWebSocketTests(TasksByWebSocket, MemoryOnlyContract, OnDelayed, TestCase):
    """WebSocket by way of a site of twisted.web."""

    make_server = MountedServer


class MountedLongPollTests(TasksByLongPoll, MemoryOnlyContract, OnDelayed, TestCase):
    """Long-poll by way of a site of twisted.web."""

    make_server = MountedServer
