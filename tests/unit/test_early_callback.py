"""The application reports the end before it has answered that it will come (pushpin#48221)."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from random import Random
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.auth.fetch import FetchFailed, Reply
from asyncplumber.core.tasks.outcomes import Outcome
from asyncplumber.core.tasks.service import Tasks
from asyncplumber.event import Draft, new_id, timestamp
from asyncplumber.starters.address import WebhookAddress
from asyncplumber.starters.webhook import WebhookStarter
from asyncplumber.task import Report, StartRequest, TaskState
from asyncplumber.testing import NOW, MemoryCluster
from asyncplumber.wire.payload import payload_of
from harness.memory_subscribers import MemoryEventSource

TIMES = 1000 if os.environ.get("ASYNCPLUMBER_MORE") else 200
LATEST = 0.005  # seconds after the POST


class EarlyCallbackTests(SynchronousTestCase):
    """Scenario 4, in memory: two instances on one store, the report at either."""

    def setUp(self) -> None:
        self.random = Random(48221)
        self.errors: list[Any] = []
        self.posts: Counter[str] = Counter()  # by the run
        self.early = 0  # reports before the answer
        clock = Clock()
        address = WebhookAddress("http://127.0.0.1/work", True)
        starter = WebhookStarter(address, self.post, clock, lambda: NOW)
        self.cluster = MemoryCluster(plumber={"starter": starter})
        self.clock = self.cluster.clock

    @property
    def tasks(self) -> Tasks:
        """Those of one of the instances."""
        return self.random.choice(self.cluster.servers).plumber.tasks

    def post(
        self,
        url: str,
        headers: Mapping[bytes, bytes],
        body: bytes,
        *,
        timeout: float,
        limit: int = 0,
    ) -> Deferred[Reply]:
        """Report the end now or within some milliseconds, and answer before or after that."""
        answered: Deferred[Reply] = Deferred()
        key, run = headers[b"plumber-task"].decode(), headers[b"plumber-run"].decode()
        self.posts[run] += 1
        report, answer = (self.random.uniform(0.0, LATEST) for _ in range(2))
        at_once = self.random.random() < 0.3
        self.early += at_once or report < answer
        if at_once:
            self.report(key, run, body)  # before the POST has returned
        else:
            self.clock.callLater(report, self.report, key, run, body)
        if self.random.random() < 0.1:
            # The answer is lost.  The run is not begun a second time.
            self.clock.callLater(answer, answered.errback, FetchFailed("connection", "lost"))
        else:
            self.clock.callLater(answer, answered.callback, Reply(202, {}, b""))
        return answered

    def report(self, key: str, run: str, body: bytes) -> None:
        id = new_id()
        content_type, payload = payload_of("application/json", body)
        draft = Draft("42", id, id, "result", timestamp(NOW), content_type, payload)
        reported = self.tasks.report(Report(draft, key, TaskState.COMPLETED, run))
        reported.addErrback(self.errors.append)

    def test_every_client_that_waits_gets_the_result(self) -> None:
        """Wherever the report came in, and whichever of both was first."""
        subscriber = MemoryEventSource(self.cluster.servers[0], "42")
        outcomes: list[Deferred[Outcome]] = []
        for number in range(TIMES):
            request = StartRequest("42", f"task-{number}", "application/json", b"%d" % number)
            outcomes.append(self.tasks.start(request, 10.0))
            self.clock.advance(self.random.choice([0.0, 0.0005, 0.002]))
            self.cluster.settle()
        self.clock.pump([0.0005] * 40)
        self.cluster.advance(5)  # an answer that is lost is found out by the next try
        for number, outcome in enumerate(outcomes):
            task = self.successResultOf(outcome).task
            self.assertEqual(
                (task.state, task.result), (TaskState.COMPLETED, b'"data":%d' % number)
            )
        self.assertEqual(self.errors, [])
        ends = [each for each in subscriber.results() if each["task"]["done"]]
        self.assertEqual(sorted(each["data"] for each in ends), list(range(TIMES)))
        self.assertEqual(set(self.posts.values()), {1})
        self.assertGreater(self.early, TIMES / 2)
        rows = [self.successResultOf(self.tasks.of_account("42", live_only=True))]
        self.assertEqual(rows, [[]])
