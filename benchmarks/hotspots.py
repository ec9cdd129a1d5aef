"""Where the CPU time of the server goes: a sampling profile (py-spy) of one scenario."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

from benchmarks.generator import Figures
from benchmarks.scenarios import Scenario
from benchmarks.servers import Contestant, Server

_RATE = "500"  # samples a second; more would disturb what is measured
_ROWS = 25


def _functions(stack: str) -> list[str]:
    """Return ``function (module)`` for each frame, the outermost first."""
    return [
        f"{frame.rpartition(':')[0]})" if frame.endswith(")") else frame
        for frame in stack.split(";")
    ]


def _table(samples: list[tuple[list[str], int]], each: float, unit: str) -> str:
    own: Counter[str] = Counter()
    below: Counter[str] = Counter()
    for functions, count in samples:
        own[functions[-1]] += count
        below.update(dict.fromkeys(functions, count))
    total = sum(own.values()) or 1
    lines = [f"{'itself':>7} {'in all':>7}  {unit}"]
    lines += [
        f"{count / total * each:7.2f} {below[name] / total * each:7.2f}  {name}"
        for name, count in own.most_common(_ROWS)
    ]
    return "\n".join(lines)


def hotspots(scenario: Scenario, contestant: Contestant, seconds: float) -> tuple[Figures, str]:
    """
    Profile a contestant while a scenario runs.

    Returns:
        The figures, which the profiler slows down a little, and a table of the costliest functions.
    """
    spy = shutil.which("py-spy")
    if spy is None:
        raise SystemExit("--profile needs py-spy (pip install py-spy) on the PATH")
    with tempfile.TemporaryDirectory() as folder, Server(contestant, seconds) as server:
        raw = Path(folder) / "stacks"
        command = [
            spy,
            "record",
            "--pid",
            str(server.pids[0]),
            "--rate",
            _RATE,
            "--duration",
            str(int(seconds + 1)),
        ]
        command += ["--format", "raw", "--output", str(raw)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
            figures = scenario.measure(server)
        lines = [line.rpartition(" ") for line in raw.read_text().splitlines()]
    samples = [(_functions(stack), int(count)) for stack, _, count in lines]
    # Deliveries are many for one event or one for one: what the scenario's second column counts is
    # what costs.
    key = next(
        (column.key for column in scenario.columns if column.key.startswith("us_per_")),
        "us_per_event",
    )
    total = figures.get(key, 0)
    what = key.rsplit("_", 1)[-1]
    title = f"CPU µs per {what}: {scenario.name}, {contestant.name}, {total:.1f} together"
    return figures, _table(samples, total, title)
