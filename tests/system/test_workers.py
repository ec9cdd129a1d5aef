"""Several workers on one port of one machine, on the embedded store: a cluster like any other."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import tempfile
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.protocol import Factory
from twisted.trial.unittest import TestCase

from harness.clients import (
    ConnectionFailed,
    EventSource,
    HttpConnection,
    HttpResponse,
    WebSocket,
    connect,
    fetch,
    sleep,
)
from harness.cluster import LINGER, Node, Traffic, children, eventually, is_alive, kill_hard, until
from harness.processes import Process
from tests.system.test_tap import TWISTD


def begun(node: Node) -> int:
    """How many workers, with those that have ended, have begun to open their store."""
    return len(re.findall(r"Listener starting on \d+", node.output))


class EmbeddedTestCase(TestCase):
    """An SQLite file, and one command that serves it."""

    timeout = 40
    options: tuple[str, ...] = ()

    async def setUp(self) -> None:
        folder = tempfile.mkdtemp(prefix="asyncplumber-workers-")
        self.addCleanup(shutil.rmtree, folder)
        store = (
            "--store",
            f"sqlite:{folder}/plumber.sqlite",
            "--lease",
            "2",
            "--linger",
            str(LINGER),
        )
        self.node = Node(*store, *self.options)
        self.addCleanup(self.node.kill)
        self.traffic = Traffic()
        self.ledger = self.traffic.ledger
        self.addCleanup(lambda: Deferred.fromCoroutine(self.traffic.disconnect()))
        await self.node.start()
        self.ports = [self.node.port]

    async def grown(self, more: int) -> None:
        """So many more events have been accepted."""
        goal = self.ledger.events + more
        await until(
            lambda: self.ledger.events >= goal, f"{goal} events accepted, not {self.ledger.events}"
        )


class WorkersTests(EmbeddedTestCase):
    """Two workers and their parent."""

    options = ("--workers", "2")

    async def setUp(self) -> None:
        await super().setUp()
        await until(lambda: "with 2 workers" in self.node.output, "both serve")
        self.workers = children(self.node.pid)

    async def scattered(self) -> int:
        """Have subscribers at both workers, and return how many."""
        await self.subscribe(8)
        await self.evened(8)
        return len(self.ledger.subscribers)

    async def subscribe(self, count: int, pause: float = 0.0) -> None:
        """So many more, one by one, with so many seconds between them."""
        for at in range(count):
            await sleep(pause)
            await self.traffic.subscriber(
                (WebSocket, EventSource)[at % 2], self.ports, "all"
            ).begin()

    async def lead(self) -> int:
        """How many subscribers the one worker has more than the other, once they all are at one."""

        async def told() -> dict[str, int]:
            return (await self.node.fetch("GET", "/accounts/all")).json

        everyone = len(self.ledger.subscribers)
        at = await eventually(
            told, lambda told: told["subscribers"] == everyone, f"{everyone} are connected"
        )
        return abs(at["subscribers"] - 2 * at["here"])

    async def evened(self, most: int) -> None:
        """With so many more subscribers at most, both have as many."""
        for _ in range(most):
            if await self.lead() <= 1:
                return
            await self.subscribe(1)
        self.assertLessEqual(await self.lead(), 1)

    async def test_both_have_as_many(self) -> None:
        """
        When all are idle before the next one comes, and although the successor of a worker that
        died begins with nobody.

        Left to the kernel it is always the same one who is quicker: a lead of 15 to 40.  A worker
        that is late for its share, as the machine is busy, has the next, so that the lead is never
        far from 0 for long.
        """
        await self.subscribe(40, 0.02)
        self.assertLessEqual(await self.lead(), 8)
        for worker in self.workers:
            before = begun(self.node)
            kill_hard(worker)
            await until(lambda before=before: begun(self.node) > before, "a successor")
            everyone = len(self.ledger.subscribers)
            await self.evened(2 * everyone + 24)
            await self.subscribe(40, 0.02)
            self.assertLessEqual(await self.lead(), 8)

    async def test_a_restarted_worker_refuses_nobody(self) -> None:
        """While one worker stops, and its successor opens the store, the other takes everyone."""
        before = begun(self.node)
        os.kill(self.workers[0], signal.SIGTERM)
        await until(lambda: "stopping; " in self.node.output, "it stops")
        more = 100
        while more:
            self.assertEqual((await fetch(self.node.port, "POST", "/hooks/all", b"{}")).status, 202)
            more -= begun(self.node) > before

    async def test_both_accept_and_act_as_one(self) -> None:
        """An event that comes in at one worker reaches the subscribers of both."""
        count = await self.scattered()
        publishers = [self.traffic.publisher(self.ports, "all") for _ in range(8)]
        await gatherResults([publisher.run(25) for publisher in publishers])
        await self.traffic.settled()
        receipt = await publishers[0].post()
        self.assertEqual(
            (receipt["subscribers"], receipt["instances"]), (count, {"ok": 2, "failed": 0})
        )

    async def test_a_receipt_counts_the_long_polls_of_both(self) -> None:
        """
        Each is answered with the event and gone when the receipt is written; 20 times of 20 all six
        are counted.
        """
        cursor = (await self.node.fetch("GET", "/events/all?wait=0")).json["cursor"]
        for turn in range(20):
            lines = [await connect(self.node.port, HttpConnection()) for _ in range(6)]
            asked = [line.request("GET", f"/events/all?after={cursor}&wait=10") for line in lines]

            async def here() -> int:
                return (await self.node.fetch("GET", "/accounts/all")).json["subscribers"]

            await eventually(here, lambda count: count == 6, "six polls wait")
            reply = await self.node.fetch("POST", "/hooks/all", b"%d" % turn)
            answers = [answer.json for answer in await gatherResults(asked)]
            self.assertEqual(
                [[event["data"] for event in answer["events"]] for answer in answers], [[turn]] * 6
            )
            self.assertEqual((reply.status, reply.json["subscribers"]), (201, 6), turn)
            cursor = answers[0]["cursor"]
            for line in lines:
                line.close()

    async def test_a_killed_worker_is_restarted(self) -> None:
        """A worker that dies under load costs no event, and has a successor soon."""
        await self.scattered()
        publisher = self.traffic.publisher(self.ports, "all")
        publisher.run(pause=0.002)
        await self.grown(20)
        kill_hard(self.workers[0])
        await until(
            lambda: len(children(self.node.pid)) == 2 and children(self.node.pid) != self.workers,
            "a successor",
        )
        await self.grown(100)
        await publisher.stop()
        await self.traffic.settled()
        self.assertTrue(any(each.connections > 1 for each in self.ledger.subscribers))

    async def test_metrics_are_those_of_all(self) -> None:
        """
        Whichever worker answers: sums, which never run backwards, also when workers die and have
        successors.
        """

        async def told(name: str) -> int:
            text = (await self.node.fetch("GET", "/metrics")).body.decode()
            return int(float(re.search(rf"^asyncplumber_{name} (\S+)$", text, re.M)[1]))  # type: ignore[index]

        publishers = [self.traffic.publisher(self.ports, "all") for _ in range(4)]
        subscribers = await self.scattered()
        seen = 0
        for number in (signal.SIGTERM, signal.SIGKILL):
            await gatherResults([publisher.run(25) for publisher in publishers])
            for _ in range(10):
                accepted = await told("events_accepted_total")
                self.assertGreaterEqual(accepted, seen)
                seen = accepted
            self.assertEqual(
                await eventually(
                    lambda: told("subscribers"), lambda count: count == subscribers, "all"
                ),
                subscribers,
            )
            await eventually(
                lambda: told("events_accepted_total"),
                lambda count: count == self.ledger.events,
                "all are counted",
            )
            before = begun(self.node)
            os.kill(children(self.node.pid)[0], number)
            while begun(self.node) == before:
                self.assertGreaterEqual(await told("events_accepted_total"), seen)
            await eventually(
                lambda: told("subscribers"), lambda count: count == subscribers, "all are back"
            )
        self.assertEqual(seen, self.ledger.events)
        self.assertEqual([await told("events_accepted_total") for _ in range(20)], [seen] * 20)
        # Histograms are sums as well, and those of the dead workers count.
        posts = await told("post_seconds_count")
        self.assertGreaterEqual(posts, seen)
        self.assertEqual(await told(r'post_seconds_bucket\{le="\+Inf"\}'), posts)
        self.assertGreater(await told("append_seconds_count"), 0)
        self.assertEqual(await told(r"build_info\{.*\}"), 1)

    async def test_workers_do_not_outlive_their_parent(self) -> None:
        """When the parent is killed its workers stop, as after a SIGTERM."""
        (subscriber,) = await self.traffic.connect(self.ports, "one", [WebSocket])
        kill_hard(self.node.pid)
        await until(lambda: not any(map(is_alive, self.workers)), "the workers end", 10)
        self.assertEqual((subscriber.byes, subscriber.closes), (1, [1001]))
        await self.port_is_free()

    async def test_sigterm_stops_all(self) -> None:
        """
        The parent passes the signal on, waits, and leaves nothing behind: no process, no hook, and
        a free port.
        """
        await self.scattered()
        await self.node.stop()
        self.assertEqual([pid for pid in self.workers if is_alive(pid)], [])
        self.assertTrue(all(each.byes == 1 for each in self.ledger.subscribers))
        await self.port_is_free()

    async def test_sighup_and_the_like_disturb_nobody(self) -> None:
        """
        A terminal that is closed, or a tool that wants logs reopened: parent and workers go on, and
        so do the streams.
        """
        await self.scattered()
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            os.killpg(self.node.pid, number)
            name = signal.Signals(number).name
            await until(
                lambda name=name: self.node.output.count(f"{name} is ignored") == 3,
                f"{name} is ignored by all",
            )
        await self.traffic.publisher(self.ports, "all").run(5)
        await self.traffic.settled()
        self.assertEqual(children(self.node.pid), self.workers)
        self.assertTrue(all(each.connections == 1 for each in self.ledger.subscribers))

    async def test_sigquit_stops_all(self) -> None:
        """As SIGTERM: to the parent, and as a terminal sends it, to the whole group."""
        await self.scattered()
        os.killpg(self.node.pid, signal.SIGQUIT)
        self.assertEqual(await self.node.ended(), -signal.SIGTERM)
        self.assertEqual([pid for pid in self.workers if is_alive(pid)], [])
        self.assertTrue(all(each.byes == 1 for each in self.ledger.subscribers))
        self.assertNotIn("Traceback", self.node.output)

    async def test_sigquit_to_a_worker_is_its_planned_stop(self) -> None:
        """Its subscribers are told goodbye, and it has a successor."""
        await self.scattered()
        before = begun(self.node)
        os.kill(self.workers[0], signal.SIGQUIT)
        await until(lambda: begun(self.node) > before, "a successor")
        left = [each for each in self.ledger.subscribers if each.connections > 1]
        self.assertTrue(all(each.byes == 1 for each in left))
        self.assertTrue(left)

    async def test_everybody_may_be_told_at_once(self) -> None:
        """
        A service manager, or Ctrl-C, signals parent and workers alike; nobody is restarted, nothing
        is logged as an error.
        """
        await self.scattered()
        os.killpg(self.node.pid, signal.SIGINT)
        await self.node.ended()
        self.assertEqual([pid for pid in self.workers if is_alive(pid)], [])
        self.assertNotIn("restarting", self.node.output)
        self.assertNotIn("Traceback", self.node.output)

    async def port_is_free(self) -> None:
        with self.assertRaises(ConnectionFailed):
            await fetch(self.node.port, "GET", "/healthz")
        await self.node.start()


class _UnixNode(Node):
    """It listens on a UNIX socket."""

    def __init__(self, path: str, *options: str) -> None:
        super().__init__("--listen", f"unix:{path}", *options)
        self._path = path

    async def fetch(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> HttpResponse:
        try:
            line = await UNIXClientEndpoint(reactor, self._path).connect(
                Factory.forProtocol(HttpConnection)
            )
        except Exception as error:
            raise ConnectionFailed from error
        try:
            return await line.request(method, path, body, headers)
        finally:
            line.transport.abortConnection()


class UnixTests(TestCase):
    """Two workers on one UNIX socket."""

    timeout = 40

    async def test_its_file_is_the_parents(self) -> None:
        """
        A worker that stops leaves it to the others and to its successor; at the end it is gone.
        """
        folder = tempfile.mkdtemp(prefix="asyncplumber-workers-")
        self.addCleanup(shutil.rmtree, folder)
        path = f"{folder}/door"
        node = _UnixNode(path, "--workers", "2", "--store", f"sqlite:{folder}/plumber.sqlite")
        self.addCleanup(node.kill)
        await node.start()
        await until(lambda: "with 2 workers" in node.output, "both serve")
        for worker in children(node.pid):
            before = begun(node)
            os.kill(worker, signal.SIGTERM)
            await until(lambda before=before: begun(node) > before, "a successor")
            await node.ready()
        await node.stop()
        self.assertNotIn("Traceback", node.output)
        self.assertFalse(os.path.exists(path))


class StartTests(TestCase):
    """
    The first requests after the port has opened, before anybody says that the server is ready.
    """

    timeout = 60

    async def first_replies(self, *options: str) -> set[int]:
        """
        The statuses of what is asked from the first connection on that is taken, until the server
        is ready.
        """
        folder = tempfile.mkdtemp(prefix="asyncplumber-start-")
        self.addCleanup(shutil.rmtree, folder)
        node = Node("--store", f"sqlite:{folder}/plumber.sqlite", *options)
        self.addCleanup(node.kill)
        node.spawn()
        statuses: list[int] = []
        asked: list[Deferred[None]] = []

        async def post() -> None:
            with contextlib.suppress(ConnectionFailed):  # not yet
                statuses.append((await node.fetch("POST", "/hooks/first", b"{}")).status)

        while "is ready at http" not in node.output or not statuses:
            asked.append(Deferred.fromCoroutine(post()))
            await sleep(0.005)
            self.assertTrue(node.alive, node.output)
        await gatherResults(asked)
        return set(statuses)

    async def test_the_first_post_is_kept(self) -> None:
        """It waits until the store is open."""
        self.assertEqual(await self.first_replies(), {202})

    async def test_the_first_post_to_workers_is_kept(self) -> None:
        """Also when no worker serves yet."""
        self.assertEqual(await self.first_replies("--workers", "2"), {202})


class SignalTests(EmbeddedTestCase):
    """One process, and the signals that left alone would end it at once."""

    async def test_sighup_and_the_like_disturb_nobody(self) -> None:
        """The stream goes on, and the log says that the signal is ignored."""
        (subscriber,) = await self.traffic.connect(self.ports, "one", [WebSocket])
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            self.node.signal(number)
            name = signal.Signals(number).name
            await until(
                lambda name=name: f"{name} is ignored" in self.node.output, f"{name} is ignored"
            )
        await self.traffic.publisher(self.ports, "one").run(3)
        await self.traffic.settled()
        self.assertEqual(subscriber.connections, 1)

    async def test_sigquit_is_a_planned_stop(self) -> None:
        """Subscribers are told goodbye, and the status is that of SIGTERM."""
        (subscriber,) = await self.traffic.connect(self.ports, "one", [WebSocket])
        self.node.signal(signal.SIGQUIT)
        self.assertEqual(await self.node.ended(), -signal.SIGTERM)
        self.assertEqual((subscriber.byes, subscriber.closes), (1, [1001]))

    async def test_twistd_rotates_its_log_file_on_sigusr1(self) -> None:
        """Where it writes one, the signal stays with it."""
        folder = tempfile.mkdtemp(prefix="asyncplumber-log-")
        self.addCleanup(shutil.rmtree, folder)
        log = Path(folder, "twistd.log")
        words = [
            *TWISTD[:-1],
            f"--logfile={log}",
            "asyncplumber",
            "--port",
            "0",
            "--store",
            "memory:",
        ]
        process = Process(words)
        self.addCleanup(process.kill)
        await until(lambda: log.exists() and "is ready at" in log.read_text(), "ready")
        os.kill(process.pid, signal.SIGUSR1)
        await until(Path(folder, "twistd.log.1").exists, "the log is rotated")
        self.assertIn("is ready at", Path(folder, "twistd.log.1").read_text())


class KillTests(EmbeddedTestCase):
    """One process on the embedded store."""

    async def test_nothing_accepted_is_lost(self) -> None:
        """
        Killed in the midst of 1,000 POSTs, it has every event that it accepted, and each once.
        """
        publishers = [self.traffic.publisher(self.ports, "kept") for _ in range(10)]
        sent = [publisher.run(100) for publisher in publishers]
        for goal in (200, 500, 800):
            await until(lambda goal=goal: self.ledger.events >= goal, f"{goal} accepted")
            self.node.kill()
            await self.node.start()
        await gatherResults(sent)
        late = self.traffic.subscriber(WebSocket, self.ports, "kept", "earliest")
        await late.begin()
        await self.traffic.settled()
        self.assertEqual([seq for seq, _ in late.events], list(range(1, 1001)))
