"""The support of the tests: reserved ports, processes, lowest versions."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from contextlib import ExitStack

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from harness.lowest import SETUP, lowest
from harness.ports import reserve_port
from harness.processes import Process


class ReservedPortTests(SynchronousTestCase):
    """A port for a server that has to know it before it starts."""

    def test_a_server_can_take_it_again_and_again(self) -> None:
        """As one that is killed and restarted at the same port does."""
        port = reserve_port()
        for _ in range(3):
            with socket.create_server(("127.0.0.1", port)) as server:
                socket.create_connection(("127.0.0.1", port), 5).close()
                server.accept()[0].close()

    def test_the_system_gives_it_to_nobody_else(self) -> None:
        """Neither as a port for a server nor as the near end of a connection."""
        if sys.platform != "linux":
            raise SkipTest("only Linux lets a server bind a port that is reserved")
        ports = {reserve_port() for _ in range(20)}
        with ExitStack() as stack:
            server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1000))
            ends = [server]
            for _ in range(300):
                ends.append(stack.enter_context(socket.create_server(("127.0.0.1", 0))))
                ends.append(stack.enter_context(socket.create_connection(server.getsockname(), 5)))
            self.assertEqual(ports & {end.getsockname()[1] for end in ends}, set())


class ProcessTests(SynchronousTestCase):
    """What a process of a test is started with."""

    def test_it_ends_with_the_process_that_started_it(self) -> None:
        """However that one ended."""
        if sys.platform != "linux":
            raise SkipTest("only Linux tells a process that its parent died")
        code = (
            "import os, signal, sys\n"
            "from harness.processes import Process\n"
            "child = Process([sys.executable, '-c', 'import time; print(1); time.sleep(60)'])\n"
            "child.wait_for('1')\n"
            "print(child.pid, flush=True)\n"
            "os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        parent = Process([sys.executable, "-c", code])
        self.addCleanup(parent.kill)
        pid = int(parent.wait_for(r"^(\d+)$")[1])
        waiting = f"while kill -0 {pid} 2>/dev/null; do sleep 0.05; done"
        subprocess.run(["timeout", "20", "sh", "-c", waiting], check=True)

    def test_it_can_be_interrupted(self) -> None:
        """Although a job in the background of a script ignores SIGINT."""
        code = "import signal; print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)"
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            process = Process([sys.executable, "-c", code])
        finally:
            signal.signal(signal.SIGINT, before)
        self.addCleanup(process.kill)
        process.wait_for("False")


class LowestTests(SynchronousTestCase):
    """The constraints for the session ``lowest``."""

    def test_each_requirement_of_the_project_has_a_lower_bound(self) -> None:
        """So that all of them are tested at it."""
        constraints = list(lowest(SETUP.read_text(encoding="utf-8")))
        self.assertTrue(all("==" in line for line in constraints))
        self.assertIn("twisted", {line.partition("==")[0] for line in constraints})

    def test_a_requirement_without_one_is_refused(self) -> None:
        """It would silently be tested at its latest version."""
        text = SETUP.read_text(encoding="utf-8").replace("klein>=", "klein<")
        with self.assertRaisesRegex(ValueError, "klein"):
            list(lowest(text))
