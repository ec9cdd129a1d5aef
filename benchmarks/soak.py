"""Hours of work in minutes: watch the memory under a steady load, with clients that come and go."""

from __future__ import annotations

import time

from benchmarks import machine
from benchmarks.generator import Figures
from benchmarks.servers import Contestant, Server

_RATE = 500  # events a second, to ten subscribers each
_EVERY = 2.0  # seconds between two looks


def _growth(samples: list[tuple[float, int]]) -> float:
    """Return the growth in KiB per hour, by least squares."""
    times, sizes = [time for time, _ in samples], [size for _, size in samples]
    middle, mean = sum(times) / len(times), sum(sizes) / len(sizes)
    scatter = sum((time - middle) ** 2 for time in times)
    return (
        3600 * sum((time - middle) * (size - mean) for time, size in samples) / scatter
        if scatter
        else 0.0
    )


def soak(contestant: Contestant, minutes: float) -> Figures:
    """
    Watch the memory of a server.

    Returns:
        ``samples`` of (seconds, KiB), and the growth of the second half in KiB per hour.
    """
    seconds = 60 * minutes
    with Server(contestant) as server:
        steady = server.start_load(
            f"--accounts 100 --subscribers 10 --publishers 16 --rate {_RATE} "
            f"--events {int(_RATE * seconds)} --prefix soak"
        )
        began, samples, guests = time.monotonic(), [], {"loads": 0, "bad": 0}
        while (now := time.monotonic() - began) < seconds:
            samples.append((now, machine.rss(server.pids)))
            guests["loads"] += 1
            guests["bad"] += not server.load(
                "--accounts 10 --subscribers 20 --events 50 --prefix guest"
            )["ok"]
            time.sleep(max(0.0, _EVERY - (time.monotonic() - began - now)))
        figures = steady.result()
    half = samples[len(samples) // 2 :]
    return {
        **figures,
        "contestant": contestant.name,
        "minutes": minutes,
        "samples": samples,
        "guests": guests["loads"] * 200,
        "ok": figures["ok"] and not guests["bad"],
        "first_kib": samples[0][1],
        "half_kib": half[0][1],
        "last_kib": samples[-1][1],
        "growth_kib_per_hour": _growth(half),
    }


def sentence(row: Figures) -> str:
    """Describe the result of a soak."""
    first, half, last, growth = (
        row[key] / 1024 for key in ("first_kib", "half_kib", "last_kib", "growth_kib_per_hour")
    )
    return (
        f"Soak, {row['contestant']}: {row['minutes']:g} minutes, "
        f"{row.get('deliveries', 0):,.0f} deliveries, and {row['guests']:,} subscribers that came "
        f"and went.  Memory: {first:.1f} MiB at first, {half:.1f} after half of the time, "
        f"{last:.1f} at the end; the second half grew by {growth:.1f} MiB an hour.  "
        + ("Nothing was lost, doubled or out of order." if row["ok"] else "IT FAILED.")
    )
