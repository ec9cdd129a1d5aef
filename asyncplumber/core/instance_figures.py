"""What the core of an instance counts, as metrics."""

from __future__ import annotations

from typing import Protocol

from asyncplumber.core.hub import Hub
from asyncplumber.core.intake import Intake
from asyncplumber.figures import FigureSet, Gauge, ReadCounter


class RelayCounts(Protocol):
    """What the relay has counted: events taken, and batches not taken, by other instances."""

    relayed: int
    failed: int


def instance_figures(hub: Hub, intake: Intake, relay: RelayCounts) -> FigureSet:
    """Return a new set with the figures of these parts."""
    return FigureSet(
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
