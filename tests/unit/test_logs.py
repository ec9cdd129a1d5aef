"""The log of the server, as text and as JSON."""

from __future__ import annotations

import io
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as some
from twisted.application.service import Application, Service
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import ILogObserver, Logger, LogLevel, LogPublisher
from twisted.python import log as former
from twisted.python.logfile import LogFile
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.server.logs import (
    LoggedService,
    configure_twist,
    log_observer,
    observer_for_twistd,
    told_by_worker,
)


class Secretive:
    """An object of the program."""

    def __init__(self) -> None:
        self.token = "hunter2"

    def __repr__(self) -> str:
        return "<an object>"


class LogCase(SynchronousTestCase):
    """A log of its own."""

    def setUp(self) -> None:
        self.file = io.StringIO()
        self.publisher = LogPublisher()
        self.log = Logger("asyncplumber.test", observer=self.publisher)

    def begin(self, format: str, level: str = "info") -> None:
        self.publisher.addObserver(log_observer(self.file, format, level))

    def lines(self) -> list[str]:
        return self.file.getvalue().splitlines()


class TextTests(LogCase):
    """For people."""

    def setUp(self) -> None:
        super().setUp()
        self.begin("text")

    def test_a_line_has_time_source_and_level(self) -> None:
        """The time is RFC 3339 in UTC."""
        self.log.warn("{what} happened", what="it")
        [line] = self.lines()
        self.assertRegex(
            line,
            r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z \[asyncplumber\.test#warn\] it happened$",
        )

    def test_a_name_cannot_forge_a_line(self) -> None:
        """Nor show itself as another name, nor talk to the terminal."""
        for text in ("a\n2026-01-01 [x#info] all is well", "a\u202etoor\u2069", "\x1b[2Ja\x9b"):
            self.log.info("account {account}", account=text)
        self.assertEqual(len(self.lines()), 3)
        for code in ("\u202e", "\u2069", "\x1b", "\x9b"):
            self.assertNotIn(code, self.file.getvalue())

    def test_a_traceback_is_indented(self) -> None:
        """So a line that is not indented begins an event."""
        try:
            raise ValueError("a\u202eb\nnot a new event")
        except ValueError:
            self.log.failure("it failed")
        first, *rest = self.lines()
        self.assertTrue(first.endswith("[asyncplumber.test#critical] it failed"))
        self.assertTrue(all(line.startswith("\t") for line in rest))
        self.assertIn("ValueError: a\\u202eb", "\n".join(rest))

    @given(some.text())
    def test_any_text_is_one_line(self, text: str) -> None:
        """It can be written, too."""
        before = len(self.file.getvalue())
        self.log.info("{text}", text=text)
        written = self.file.getvalue()[before:]
        written.encode()
        self.assertEqual(len(written.splitlines()), 1)


class JsonTests(LogCase):
    """For programs."""

    def setUp(self) -> None:
        super().setUp()
        self.begin("json")

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines()]

    def test_a_line_is_an_object(self) -> None:
        """With the values that the message shows."""
        self.log.warn("{name} has {count} of {part}", name="é\n\u202e", count=3, part=None)
        [record] = self.records()
        self.assertRegex(record.pop("time"), r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")
        self.assertEqual(
            record,
            {
                "level": "warn",
                "logger": "asyncplumber.test",
                "message": "é\n\u202e has 3 of None",
                "name": "é\n\u202e",
                "count": 3,
                "part": None,
            },
        )
        self.assertTrue(self.file.getvalue().isascii())

    def test_what_the_message_does_not_show_is_left_out(self) -> None:
        """An object of the program may know a secret, and an event has its source."""
        self.log.info("{kept}", kept=Secretive(), left_out="hunter2", other=Secretive())
        [record] = self.records()
        self.assertEqual(record["kept"], "<an object>")
        self.assertEqual(set(record), {"time", "level", "logger", "message", "kept"})
        self.assertNotIn("hunter2", self.file.getvalue())

    def test_a_value_that_json_does_not_have(self) -> None:
        """NaN, infinity, bytes."""
        self.log.info("{a} {b} {c!r}", a=float("nan"), b=float("-inf"), c=b"x")
        [record] = self.records()
        self.assertEqual((record["a"], record["b"], record["c"]), (None, None, "b'x'"))

    def test_a_value_whose_name_is_taken(self) -> None:
        """It does not replace the event's own."""
        self.log.info("{worker} {time}", worker="high", time="tea")
        [record] = self.records()
        self.assertNotIn("worker", record)
        self.assertEqual((record["worker_"], record["time_"]), ("high", "tea"))

    def test_a_traceback_is_a_member(self) -> None:
        """One line for one event."""
        try:
            raise ValueError("no")
        except ValueError:
            self.log.failure("it failed")
        [record] = self.records()
        self.assertEqual((record["message"], record["level"]), ("it failed", "critical"))
        self.assertIn("ValueError: no", record["traceback"])

    def test_a_message_that_cannot_be_formatted(self) -> None:
        """It is a bug of ours, and no reason to lose the event."""
        self.log.info("{missing} {")
        self.assertEqual(len(self.records()), 1)


class FilterTests(LogCase):
    """What is not written."""

    def test_each_level(self) -> None:
        """And everything above it."""
        for number, level in enumerate(("debug", "info", "warn", "error")):
            file, publisher = io.StringIO(), LogPublisher()
            publisher.addObserver(log_observer(file, "text", level))
            log = Logger("x", observer=publisher)
            for name in ("debug", "info", "warn", "error"):
                getattr(log, name)(name)
            log.critical("critical")
            self.assertEqual(len(file.getvalue().splitlines()), 5 - number)

    def test_chatter_of_the_driver(self) -> None:
        """Its connections come and go; what is wrong with them is written."""
        self.begin("text", "debug")
        driver = Logger("txmongo.connection._Connection", observer=self.publisher)
        driver.info("Starting factory {factory!r}", factory=1)
        driver.warn("something is wrong")
        observer = log_observer(self.file, "text", "debug")
        legacy = former.LogPublisher(publishPublisher=LogPublisher(observer))
        legacy.msg("TxMongo: connection to MongoDB established.", logLevel=20)
        legacy.msg("'TxMongo lost connection to MongoDB.'", isError=1)
        legacy.msg("TxMongo: no handler found for opcode '1'", logLevel=30)
        legacy.msg("another library")
        texts = [line.partition("] ")[2] for line in self.lines()]
        self.assertEqual(
            texts,
            [
                "something is wrong",
                "TxMongo: no handler found for opcode '1'",
                "another library",
            ],
        )
        self.assertIn("[twisted#info]", self.lines()[-1])


class WorkerTests(LogCase):
    """What a worker logs, in the log of its parent."""

    def told(self) -> Any:
        self.begin("json", "debug")
        try:
            raise ValueError("no")
        except ValueError:
            self.log.failure("account {account} failed", account="a")
        return told_by_worker(2, self.file.getvalue().strip())

    def test_it_is_the_same_event(self) -> None:
        """With its own time, level, source and values, and the number of the worker."""
        event = self.told()
        [line] = self.lines()
        again = io.StringIO()
        log_observer(again, "json", "info")(event)
        self.assertEqual(json.loads(again.getvalue()), {**json.loads(line), "worker": 2})
        self.assertEqual(event["log_level"], LogLevel.critical)

    def test_as_text(self) -> None:
        """The worker is named, and the traceback is there."""
        event = self.told()
        text = io.StringIO()
        log_observer(text, "text", "info")(event)
        first, *rest = text.getvalue().splitlines()
        self.assertIn("[asyncplumber.test#critical] worker 2: account a failed", first)
        self.assertIn("\tbuiltins.ValueError: no", rest)

    def test_any_other_line_is_none(self) -> None:
        """The interpreter writes to the same pipe."""
        good = {"time": "2026-01-01T00:00:00.000Z", "level": "info", "logger": "x", "message": "y"}
        self.assertIsNotNone(told_by_worker(1, json.dumps(good)))
        for line in (
            "Fatal Python error",
            "",
            "7",
            "[]",
            "{}",
            '{"level": "info"}',
            json.dumps({**good, "level": "loud"}),
            json.dumps({**good, "time": "yesterday"}),
            json.dumps({**good, "time": 7}),
            json.dumps({**good, "message": 7}),
            json.dumps({**good, "logger": None}),
            "[" * 100_000,
        ):
            self.assertIsNone(told_by_worker(1, line), line[:50])


class TwistdTests(SynchronousTestCase):
    """Which log a run of twistd gets."""

    def observer(self, **options: Any) -> Any:
        return observer_for_twistd(options, "json", "info", MemoryReactorClock())

    def test_the_application_has_it(self) -> None:
        """twistd looks there before it makes one."""
        observer = self.observer(nodaemon=True)
        application: Any = Application("asyncplumber")
        LoggedService(Service(), observer).setServiceParent(application)
        self.assertIs(application.getComponent(ILogObserver), observer)

    def test_a_log_that_the_user_has_chosen_stays(self) -> None:
        """``--logger`` and ``--syslog``; and twistd refuses a daemon that logs to a terminal."""
        for options in ({"logger": object()}, {"syslog": True}, {"logfile": "-"}):
            self.assertIsNone(self.observer(**options))
        application: Any = Application("asyncplumber")
        LoggedService(Service(), None).setServiceParent(application)
        self.assertIsNone(application.getComponent(ILogObserver, None))

    def test_a_file(self) -> None:
        """``--logfile``."""
        path = self.mktemp()
        opened = LogFile.fromFullPath(path)
        self.addCleanup(opened.close)
        self.patch(LogFile, "fromFullPath", lambda _: opened)
        observer = self.observer(logfile=path)
        Logger("x", observer=observer).info("hello")
        with open(path, encoding="utf-8") as file:
            self.assertEqual(json.loads(file.read())["message"], "hello")

    def test_twist_has_options_of_its_own(self) -> None:
        """Ours count if they are given."""
        for wanted, expected in (
            (("", ""), ("text", "info")),
            (("json", ""), ("json", "info")),
            (("", "debug"), ("text", "debug")),
        ):
            twist: dict[str, Any] = {"logFormat": "text", "logLevel": LogLevel.info}
            configure_twist(twist, *wanted)
            file = io.StringIO()
            log = Logger("x", observer=twist["fileLogObserverFactory"](file))
            log.debug("hello")
            log.info("hello")
            self.assertEqual(len(file.getvalue().splitlines()), 2 if expected[1] == "debug" else 1)
            self.assertEqual(file.getvalue().startswith("{"), expected[0] == "json")
            self.assertEqual(twist["logLevel"].name, expected[1])
