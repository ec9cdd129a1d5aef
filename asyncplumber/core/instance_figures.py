"""What the core of an instance counts, as metrics."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from importlib import metadata
from typing import Protocol

from asyncplumber.core.hub import Hub
from asyncplumber.core.intake import Intake
from asyncplumber.figures import FigureSet, Gauge, Info, ReadCounter


class RelayCounts(Protocol):
    """What the relay has counted: events taken, and batches not taken, by other instances."""

    relayed: int
    failed: int


@cache  # reading them takes two milliseconds, and tests make a thousand servers
def version(package: str) -> str:
    """Return the version of an installed package."""
    return metadata.version(package)


def _info() -> Info:
    labels = {
        "version": version("asyncplumber"),
        "python": ".".join(map(str, sys.version_info[:3])),
        "twisted": version("twisted"),
    }
    return Info("build_info", "Always 1; the labels tell the versions.", labels)


def instance_figures(
    hub: Hub, intake: Intake, relay: RelayCounts, now: Callable[[], float]
) -> FigureSet:
    """
    Return a new set with the figures of these parts.

    Args:
        hub: The channels.
        intake: Where events come in.
        relay: Where they go.
        now: Returns the seconds since 1970.
    """
    began = now()
    return FigureSet(
        _info(),
        Gauge(
            "start_time_seconds",
            "When the oldest process of the server was started, in seconds since 1970.",
            lambda: began,
            "min",
        ),
        Gauge("subscribers", "Connected subscribers.", lambda: hub.subscribers),
        Gauge(
            "open_channels",
            "Open channels, one per account and worker.",
            lambda: len(hub.accounts),
        ),
        ReadCounter(
            "events_delivered_total",
            "Events handed to subscribers, once for each.",
            lambda: hub.delivered,
        ),
        ReadCounter("events_accepted_total", "Events accepted and kept.", lambda: intake.accepted),
        ReadCounter(
            "events_relayed_total",
            "Events taken by other instances, once for each.",
            lambda: relay.relayed,
        ),
        ReadCounter(
            "event_batches_failed_total",
            "Batches of events not taken by another instance.",
            lambda: relay.failed,
        ),
        intake.times.append,
        intake.times.post,
        intake.times.delivery,
    )
