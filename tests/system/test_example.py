"""The example of a Twisted application with a plumber inside, in two processes."""

import http.client
import json
import sys
import tempfile
import time
from pathlib import Path

from twisted.trial.unittest import TestCase

from harness.ports import reserve_port
from harness.processes import Process

ROOT = Path(__file__).resolve().parent.parent.parent
EXAMPLE = ROOT / "docs/examples/own_application.py"
SOON = 20.0  # seconds


class Application:
    """One process of the example."""

    def __init__(self, store: str) -> None:
        self.port = reserve_port()
        command = [
            sys.executable,
            "-c",
            "from twisted.scripts.twistd import run; run()",
            "-n",
            "--pidfile=",
            "-y",
            str(EXAMPLE),
        ]
        self.process = Process(command, {"PORT": str(self.port), "STORE": store})

    def ask(
        self, method: str, path: str, body: bytes | None = None
    ) -> tuple[int, dict[str, object]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request(
                method, path, body, {"Content-Type": "application/json"} if body else {}
            )
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def results(self) -> dict[str, object]:
        try:
            return self.ask("GET", "/latest")[1]
        except OSError:
            return {}


def until(condition, what: str) -> None:
    """Poll `condition` with a deadline."""
    end = time.monotonic() + SOON
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not in time: {what}")
        time.sleep(0.05)


class ExampleTests(TestCase):
    def test_callbacks_are_called_whichever_instance_it_was_posted_to(self) -> None:
        """Two processes of the example share a store; a POST to one calls the callbacks of both."""
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        both = [Application(f"sqlite:{folder.name}/shared.sqlite") for _ in range(2)]
        for application in both:
            self.addCleanup(application.process.stop)
        for application in both:
            until(lambda one=application: self.listening(one) == 2, "both instances are registered")
        status, receipt = both[0].ask("POST", "/plumber/hooks/42", b'{"total": 7}')
        self.assertEqual((status, receipt["subscribers"]), (201, 2))
        for application in both:
            until(
                lambda one=application: one.results() == {"42": {"total": 7}},
                "the result has arrived",
            )

    @staticmethod
    def listening(application: Application) -> object:
        try:
            return application.ask("GET", "/plumber/accounts/42")[1].get(
                "subscribers"
            )  # 503 while its store opens
        except OSError:
            return 0
