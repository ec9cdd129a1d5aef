"""
What is measured.  Each scenario gets a server that was started for it, and returns figures.

``{seconds}`` in the arguments of a load is how long it publishes at most.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.ceiling import ceilings
from benchmarks.generator import Figures
from benchmarks.servers import Server

FAULTS = ("missing", "wrong", "duplicates", "disordered", "closed", "refused")

_INGEST = "--accounts 100 --publishers 16 --events 60000 --seconds {seconds}"
_MIXED = "--accounts 100 --subscribers 10 --publishers 16 --events 20000 --seconds {seconds}"
_BATCH = "--publishers 4 --batch 100 --events 400000 --seconds {seconds}"
_SIZES = (10, 100, 1000, 10_000)
_CROWDS = (10, 1000, 100_000)


class Column(NamedTuple):
    """A figure of a scenario.  ``better`` is 1 if more is better, -1 if less is, 0 if neither."""

    heading: str
    key: str
    format: str = ",.0f"
    better: int = 0


@dataclass(frozen=True)
class Scenario:
    """
    A load, and the figures that are shown.

    The first of ``columns`` is the one that is compared.  ``field`` names the contestants: peers,
    stores, workers and so on.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    measure: Callable[[Server], Figures]
    field: str = "peers"
    needs: str = ""  # what a contestant must be able to do


def merged(parts: Mapping[str, Figures]) -> Figures:
    """
    Join the figures of several loads.

    Keys get the name of the load as a suffix.  Faults and times are added up.
    """
    figures: Figures = {
        f"{key}_{name}": value
        for name, part in parts.items()
        for key, value in part.items()
        if key != "ok"
    }
    for fault in FAULTS:
        figures[fault] = sum(part.get(fault, 0) for part in parts.values())
    figures["client_cpu"] = sum(part.get("client_cpu", 0) for part in parts.values())
    figures["ok"] = all(part["ok"] for part in parts.values())
    errors = [part["error"] for part in parts.values() if "error" in part]
    return {**figures, "error": "; ".join(errors)} if errors else figures


def loaded(arguments: str) -> Callable[[Server], Figures]:
    """Return a scenario that is one load."""
    return lambda server: server.load(arguments)


def batches(accounts: int) -> Callable[[Server], Figures]:
    """
    Return a scenario with 100 events in a POST.

    Contestants without batches get single POSTs, as in ``ingest``.
    """
    in_batches = f"--accounts {accounts} {_BATCH}"
    return lambda server: server.load(in_batches if "batch" in server.contestant.able else _INGEST)


def _within(trace: list[list[float]], begin: float, end: float) -> list[float]:
    return sorted(took for sent, took in trace if begin <= sent <= end)


def _quantile(values: list[float], share: float) -> float:
    return values[int(share * (len(values) - 1))] if values else float("nan")


def storm(server: Server) -> Figures:
    """Let 10,000 clients resume at once while 100 connected ones get 50 events per second."""
    probe = server.start_load(
        "--subscribers 100 --publishers 50 --rate 50 --events 500 --prefix s --trace --patience 30"
    )
    crowd = server.load(
        "--accounts 100 --subscribers 100 --resume 10 --window 4000 --prefix s --patience 30"
    )
    steady = probe.result()
    figures = merged({"crowd": crowd, "steady": steady})
    if crowd["ok"] and steady["ok"]:
        begin, end = crowd["began"], crowd["began"] + crowd["seconds"]
        trace = steady.pop("trace")
        during, calm = _within(trace, begin, end), _within(trace, end + 0.5, float("inf"))
        figures |= {
            "served_s": crowd["seconds"],
            "storm_p50": _quantile(during, 0.5),
            "storm_p99": _quantile(during, 0.99),
        }
        figures |= {
            "storm_max": _quantile(during, 1),
            "calm_p50": _quantile(calm, 0.5),
            "calm_p99": _quantile(calm, 0.99),
        }
    figures.pop("trace_steady", None)
    return figures


def fairness(server: Server) -> Figures:
    """Flood an account with 10,000 subscribers, and measure an event for another account."""
    probe = server.start_load(
        "--rate 50 --publishers 50 --events 500 --prefix lonely --trace --patience 30"
    )
    crowd = server.load(
        "--subscribers 10000 --publishers 4 --events 100000 --seconds 5 --window 512 "
        "--prefix crowd --patience 30"
    )
    steady = probe.result()
    figures = merged({"crowd": crowd, "steady": steady})
    if crowd["ok"] and steady["ok"]:
        begin, end = crowd["began"], crowd["began"] + crowd["seconds"]
        during = _within(steady["trace"], begin + 0.2, end)
        figures |= {
            "fair_p50": _quantile(during, 0.5),
            "fair_p99": _quantile(during, 0.99),
            "fair_max": _quantile(during, 1),
        }
        figures["crowd_rate"] = crowd["deliveries_per_s"]
    figures.pop("trace_steady", None)
    return figures


def spread(server: Server) -> Figures:
    """Measure the cost of a delivery with more and more subscribers of one account."""
    common = "--one-by-one --seconds {seconds}"
    loads = {
        size: f"--subscribers {size} --events {500_000 // size} --prefix n{size}x {common}"
        for size in _SIZES
    }
    return merged({str(size): server.load(load) for size, load in loads.items()})


def crowded(server: Server) -> Figures:
    """Measure the cost of a POST with more and more accounts that have a history."""
    parts: dict[str, Figures] = {}
    for size in _CROWDS:
        fill = server.load(
            f"--accounts {size} --subscribers 0 --publishers 16 --events {size} --prefix h"
        )
        server.settle()
        # The same accounts, in turn: as many of the large crowd as come up.
        part = server.load(
            f"--accounts {size} --subscribers 0 --publishers 16 --events 30000 --prefix h "
            "--seconds {seconds}"
        )
        part["ok"] = part["ok"] and fill["ok"]
        parts[str(size)] = part
    return merged(parts)


def ways_in(server: Server) -> Figures:
    """Single POSTs and batches; with MongoDB also what its drivers do with the same documents."""
    uri = server.contestant.mongodb.replace("{port}", str(server.port))
    single, figures = (
        ceilings(uri, "single", lambda: server.load(_INGEST)) if uri else (server.load(_INGEST), {})
    )
    server.settle()
    batch = f"--accounts 100 {_BATCH}"
    many, more = (
        ceilings(uri, "batch", lambda: server.load(batch), drop=True)
        if uri
        else (server.load(batch), {})
    )
    return merged({"single": single, "batch": many}) | figures | more


def shared_port(server: Server) -> Figures:
    """Ingest and deliveries, and how much of the machine the load generator itself took."""
    parts = {"ingest": server.load(_INGEST), "mixed": server.load(_MIXED)}
    shares = {
        f"share_{name}": part.get("client_cpu", 0) / part.get("seconds", 1)
        for name, part in parts.items()
    }
    return merged(parts) | shares


_RATE = Column("deliveries/s", "deliveries_per_s", ",.0f", 1)
_CPU = Column("CPU µs each", "us_per_delivery", ".2f", -1)
_POSTS = Column("POSTs/s", "events_per_s", ",.0f", 1)
_EVENTS = Column("events/s", "events_per_s", ",.0f", 1)
_COST = Column("CPU µs each", "us_per_event", ".1f", -1)
_LAST = (Column("p50 ms", "last_p50_ms", ".2f"), Column("p99 ms", "last_p99_ms", ".2f"))
_FANOUT = "--subscribers 1000 --one-by-one --events 1000 --seconds {seconds}"

SCENARIOS = [
    Scenario(
        "fanout",
        "One event after the other to 1,000 WebSocket subscribers",
        (_RATE, _CPU, *_LAST),
        loaded(_FANOUT),
    ),
    Scenario(
        "sse",
        "The same by Server-Sent Events",
        (_RATE, _CPU, *_LAST),
        loaded(_FANOUT + " --sse"),
        needs="sse",
    ),
    Scenario(
        "burst",
        "Four publishers at once, 1,000 WebSocket subscribers of one account",
        (_RATE, _CPU, *_LAST),
        loaded("--subscribers 1000 --publishers 4 --events 4000 --seconds {seconds}"),
    ),
    Scenario(
        "lone",
        "A single event on an idle server, 100 a second, one subscriber",
        (Column("p50 ms", "p50_ms", ".3f", -1), Column("p99 ms", "p99_ms", ".3f")),
        loaded("--rate 100 --events 300"),
    ),
    Scenario(
        "ingest",
        "16 publishers, 100 accounts with one subscriber each",
        (_POSTS, _COST, *_LAST),
        loaded(_INGEST),
    ),
    Scenario(
        "mixed",
        "16 publishers, 100 accounts with ten subscribers each",
        (_RATE, _CPU, *_LAST),
        loaded(_MIXED),
    ),
    Scenario("batch-one", "100 events a POST, one account", (_EVENTS, _COST, *_LAST), batches(1)),
    Scenario(
        "batch-many", "100 events a POST, 100 accounts", (_EVENTS, _COST, *_LAST), batches(100)
    ),
    Scenario(
        "handshakes",
        "5,000 WebSockets are opened, 512 at a time",
        (
            Column("handshakes/s", "connects_per_s", ",.0f", 1),
            Column("CPU µs each", "connect_us", ".0f", -1),
        ),
        loaded("--accounts 50 --subscribers 100"),
    ),
    Scenario(
        "idle",
        "10,000 idle WebSocket subscribers",
        (Column("KiB each", "kib_each", ".1f", -1), Column("KiB in all", "rss_kib")),
        loaded("--accounts 100 --subscribers 100"),
    ),
    Scenario(
        "idle-sse",
        "10,000 idle subscribers by Server-Sent Events",
        (Column("KiB each", "kib_each", ".1f", -1), Column("KiB in all", "rss_kib")),
        loaded("--accounts 100 --subscribers 100 --sse"),
        needs="sse",
    ),
    Scenario(
        "fairness",
        "An event for one subscriber, while an account with 10,000 is flooded",
        (
            Column("p99 ms", "fair_p99", ".1f", -1),
            Column("p50 ms", "fair_p50", ".1f"),
            Column("worst ms", "fair_max", ".1f"),
            Column("flood deliveries/s", "crowd_rate"),
        ),
        fairness,
    ),
    Scenario(
        "storm",
        "10,000 come back with cursors at once; 100 are connected and get 50 events/s",
        (
            Column("live p99 ms", "storm_p99", ".1f", -1),
            Column("p50 ms", "storm_p50", ".1f"),
            Column("worst ms", "storm_max", ".1f"),
            Column("p99 ms afterwards", "calm_p99", ".2f"),
            Column("all served after s", "served_s", ".2f"),
        ),
        storm,
        needs="resume",
    ),
    Scenario(
        "spread",
        "CPU µs per delivery, by the number of subscribers",
        tuple(
            Column(f"{size:,}", f"us_per_delivery_{size}", ".2f", -1) for size in reversed(_SIZES)
        ),
        spread,
    ),
    Scenario(
        "crowded",
        "CPU µs per POST, by the number of accounts that have a history",
        tuple(Column(f"{size:,}", f"us_per_event_{size}", ".1f", -1) for size in reversed(_CROWDS)),
        crowded,
        field="own",
    ),
    Scenario(
        "workers",
        "One worker and two, on one SQLite file",
        (
            Column("mixed deliveries/s", "deliveries_per_s_mixed", ",.0f", 1),
            Column("load generator's CPUs", "share_mixed", ".2f"),
            Column("ingest POSTs/s", "events_per_s_ingest", ",.0f", 1),
            Column("load generator's CPUs", "share_ingest", ".2f"),
        ),
        shared_port,
        field="workers",
    ),
    Scenario(
        "stores",
        "Ingest into each store: single POSTs, and 100 events a POST",
        (
            Column("POSTs/s", "events_per_s_single", ",.0f", 1),
            Column("CPU µs each", "us_per_event_single", ".0f"),
            Column("in batches events/s", "events_per_s_batch", ",.0f", 1),
            Column("CPU µs each", "us_per_event_batch", ".1f"),
        ),
        ways_in,
        field="stores",
    ),
    Scenario(
        "ceiling",
        "MongoDB: what the drivers alone do with the same documents, as many at a time",
        tuple(
            Column(heading, f"{key}_{way}", form)
            for way, ours in (("single", "POSTs/s"), ("batch", "batched/s"))
            for heading, key, form in (
                (ours, "events_per_s", ",.0f"),
                ("an insert", "size", ".0f"),
                ("pymongo/s", "pymongo", ",.0f"),
                ("txmongo/s", "txmongo", ",.0f"),
            )
        ),
        ways_in,
        field="mongodb",
    ),
]


def median(rows: list[Figures], key: str) -> float | None:
    """Return the median of a figure.  None if no run has it."""
    values = [row[key] for row in rows if isinstance(row.get(key), int | float)]
    return statistics.median(values) if values else None
