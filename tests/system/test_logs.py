"""The log of real processes: alone, with workers, under ``twist``, and while the store is away."""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from twisted.trial.unittest import TestCase

from harness.mongod import Mongod, with_database
from harness.processes import Process

SERVE = [sys.executable, "-m", "asyncplumber", "serve", "--port", "0"]
_TWIST = "from twisted.application.twist._twist import Twist; Twist.main()"
TWIST = [sys.executable, "-c", _TWIST]
READY = r"asyncplumber is ready at http://127\.0\.0\.1:(\d+)/"


def records(output: str) -> list[dict[str, Any]]:
    """Return each line of a log as JSON."""
    return [json.loads(line) for line in output.splitlines()]


class LogTests(TestCase):
    def start(self, *words: str) -> tuple[Process, str]:
        """Start a command; return it and its URL."""
        server = Process(words)
        self.addCleanup(server.kill)
        return server, f"http://127.0.0.1:{server.wait_for(READY)[1]}"

    def refused(self, url: str) -> int:
        """Return the status with which a request for this URL is refused."""
        with self.assertRaises(HTTPError) as caught:
            urlopen(url)
        caught.exception.close()
        return caught.exception.code

    def test_each_line_of_a_run_is_json(self) -> None:
        """From the first to the last, with refusals and requests in between."""
        server, url = self.start(
            *SERVE, "--store", "memory:", "--log-format", "json", "--log-requests"
        )
        self.assertEqual(self.refused(f"{url}/events/a?after=-&ticket=secret"), 400)
        urlopen(Request(f"{url}/hooks/a", b"1")).close()
        server.stop()
        told = records(server.output)
        refusal = next(each for each in told if each.get("reason") == "bad-cursor")
        self.assertEqual(
            {name: refusal[name] for name in ("method", "path", "client", "status", "level")},
            {
                "method": "GET",
                "path": "/events/a",
                "client": "127.0.0.1",
                "status": 400,
                "level": "warn",
            },
        )
        posted = next(each for each in told if each.get("method") == "POST")
        self.assertEqual((posted["path"], posted["status"]), ("/hooks/a", 202))
        self.assertNotIn("secret", server.output)

    def test_workers_log_through_their_parent(self) -> None:
        """Each line has the number of its worker, its own level and source."""
        for format in ("text", "json"):
            server, url = self.start(
                *SERVE, "--store", "sqlite:x.sqlite", "--workers", "2", "--log-format", format
            )
            self.assertEqual(self.refused(f"{url}/events/a?after=-"), 400)
            server.stop()
            if format == "json":
                told = records(server.output)
                [refusal] = [each for each in told if each.get("reason") == "bad-cursor"]
                self.assertIn(refusal["worker"], (1, 2))
                self.assertEqual(refusal["level"], "warn")
            else:
                self.assertRegex(
                    server.output,
                    r"(?m)^\S+Z \[asyncplumber\.http\.request_log\.RequestLog#warn\] worker [12]: "
                    r"GET /events/a from 127\.0\.0\.1 was refused: bad-cursor \(400\)$",
                )
            self.assertNotIn("Traceback", server.output)

    def test_twist(self) -> None:
        """Its own options count, and ours if they are given; it serves and stops."""
        for options, is_json in (
            (("--log-format=text", "asyncplumber"), False),
            (("--log-format=json", "asyncplumber"), True),
            (("--log-format=text", "asyncplumber", "--log-format", "json"), True),
        ):
            server, url = self.start(*TWIST, *options, "--port", "0", "--store", "memory:")
            with urlopen(f"{url}/healthz") as answer:
                self.assertEqual(answer.status, 200)
            os.kill(server.pid, signal.SIGTERM)
            self.assertEqual(server.wait(), -signal.SIGTERM)
            if is_json:
                records(server.output)
            else:
                self.assertIn("[asyncplumber.server.service.Server#info] ", server.output)

    def test_a_level(self) -> None:
        """Less is not written: a quiet server has an empty log."""
        server = Process([*SERVE, "--store", "memory:", "--log-level", "error"])
        self.addCleanup(server.kill)
        with self.assertRaises(AssertionError):
            server.wait_for(READY, 3)
        server.stop()
        self.assertEqual(server.output, "")

    def test_a_database_that_goes_and_comes_back(self) -> None:
        """Two lines, and none about the connections of the driver."""
        database = Mongod()
        self.addCleanup(database.stop)
        database.start()
        server, url = self.start(*SERVE, "--store", with_database(database.uri, "logs"))
        urlopen(Request(f"{url}/hooks/a", b"1")).close()
        database.kill()
        server.wait_for("is unavailable")
        self.assertEqual(self.refused_post(url), 503)
        database.restart()
        server.wait_for("is back", 60)
        urlopen(Request(f"{url}/hooks/a", b"1")).close()
        server.stop()
        lines = [
            line
            for line in server.output.splitlines()
            if "[asyncplumber" not in line and "[twisted.scripts" not in line
        ]
        others = [line.partition("] ")[2] for line in lines]
        self.assertEqual(
            [text.split(" starting on ")[0].split(" Port ")[0] for text in others],
            ["Listener", "Received SIGTERM, shutting down.", "(TCP", "Main loop terminated."],
            server.output,
        )
        self.assertEqual(server.output.count("is unavailable"), 1, server.output)
        self.assertEqual(server.output.count("is back"), 1)

    def refused_post(self, url: str) -> int:
        try:
            with urlopen(Request(f"{url}/hooks/a", b"1")) as answer:
                return int(answer.status)
        except HTTPError as error:
            error.close()
            return error.code
