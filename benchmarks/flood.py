"""
A flood of bad tokens, and what the others notice of it: ``python -m benchmarks.flood``.

One address sends bad tokens, of which a signature has to be verified, while another one posts at a
steady rate.  Calm and flood take turns in one run, because the machine may have other work; so
compare within a run only.  The same is done on a server without that limit.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from asyncplumber.auth.tokens.mint import mint
from benchmarks import machine
from harness.processes import Server, start_server

SECRET = b"a secret of the benchmark, which is long enough"
FLOODER, OTHERS = "203.0.113.7", "198.51.100.7"
RATE = 200  # POSTs of the others in a second
FLOOD = 1000  # bad tokens in a second
CONNECTIONS = 10  # of each side

Answer = tuple[int, float]  # the status, and the seconds that it took


def _post(token: str, address: str) -> bytes:
    return (
        f"POST /hooks/a HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"
        f"X-Forwarded-For: {address}\r\nContent-Length: 1\r\n\r\n1"
    ).encode()


async def _client(
    port: int, request: bytes, interval: float, end: float, found: list[Answer]
) -> None:
    """Send the request in intervals; note each answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    due = time.monotonic()
    while (now := time.monotonic()) < end:
        await asyncio.sleep(max(0.0, due - now))
        sent = time.monotonic()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        await reader.readexactly(length)
        found.append((int(head.split()[1]), time.monotonic() - sent))
        due += interval
    writer.close()


async def _load(port: int, request: bytes, rate: float, seconds: float) -> list[Answer]:
    found: list[Answer] = []
    end = time.monotonic() + seconds
    interval = CONNECTIONS / rate
    await asyncio.gather(
        *[_client(port, request, interval, end, found) for _ in range(CONNECTIONS)]
    )
    return found


def _flood(port: int, token: str, seconds: float, statuses: multiprocessing.Queue[object]) -> None:
    """Run in a process of its own: what the flood costs must not slow the others down."""
    found = asyncio.run(_load(port, _post(token, FLOODER), FLOOD, seconds))
    counts: dict[int, int] = {}
    for status, _ in found:
        counts[status] = counts.get(status, 0) + 1
    statuses.put(counts)


@contextmanager
def _server(limits: str) -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as folder:
        secret, auth = Path(folder, "secret"), Path(folder, "auth.toml")
        for path, text in ((secret, SECRET.decode()), (auth, f"[limits]\n{limits}\n")):
            path.write_text(text, encoding="utf-8")
            path.chmod(0o600)
        server = start_server("--jwt-secret-file", str(secret), "--auth", str(auth))
        try:
            yield server
        finally:
            server.kill()


def measure(limits: str, seconds: float, rounds: int) -> dict[str, float]:
    """
    Return the p50 and p99 of the others in milliseconds, calm and in the flood.

    The processor time of the server for each bad token tells more than they do where the flood
    itself takes half of the machine.
    """
    good = mint(SECRET, "benchmark", publish=["a"])
    bad = mint(b"another secret, which is as long as that", "benchmark", publish=["a"])
    times: dict[str, list[float]] = {"calm": [], "flood": []}
    cpu = dict.fromkeys(times, 0.0)
    refused: dict[int, int] = {}
    with _server(limits) as server:
        port = server.port
        asyncio.run(_load(port, _post(good, OTHERS), RATE, 1.0))  # to warm up
        for _ in range(rounds):
            for kind in times:
                flood, counts = None, multiprocessing.Queue()
                if kind == "flood":
                    arguments = (port, bad, seconds + 1, counts)
                    flood = multiprocessing.Process(target=_flood, args=arguments)
                    flood.start()
                    time.sleep(0.7)
                before = machine.cpu([server.pid])
                found = asyncio.run(_load(port, _post(good, OTHERS), RATE, seconds))
                cpu[kind] += machine.cpu([server.pid]) - before
                assert {status for status, _ in found} == {202}, "the others are served"
                times[kind] += [took for _, took in found]
                if flood is not None:
                    for status, count in counts.get().items():
                        refused[status] = refused.get(status, 0) + count
                    flood.join()
    figures: dict[str, float] = {f"flood_{status}": count for status, count in refused.items()}
    more = cpu["flood"] - cpu["calm"]
    figures["server_us_per_bad_token"] = 1e6 * more / (FLOOD * seconds * rounds)
    for kind, values in times.items():
        cuts = statistics.quantiles(values, n=100)
        figures |= {f"{kind}_p50_ms": 1000 * cuts[49], f"{kind}_p99_ms": 1000 * cuts[98]}
    return {name: round(value, 3) for name, value in figures.items()}


def main() -> None:
    """Measure with the limit and without it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each phase")
    parser.add_argument("--rounds", type=int, default=3, help="of calm and flood")
    options = parser.parse_args()
    for name, limits in (("limited", ""), ("unlimited", "failures_per_address = false")):
        figures = measure(limits, options.seconds, options.rounds)
        print(json.dumps({"server": name, "cpus": os.cpu_count(), **figures}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
