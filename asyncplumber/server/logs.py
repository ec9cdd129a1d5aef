"""
The log of the server: as text or as JSON, from a level on, and in one line for each event.

What strangers choose (names of accounts, paths) may be in a message.  So controls are escaped: a
name cannot begin a new line, nor change what a terminal shows.
"""

from __future__ import annotations

import json
import math
import signal
import sys
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from datetime import UTC, datetime
from string import Formatter
from typing import Any, TextIO

from twisted.application.service import IService, MultiService
from twisted.logger import (
    FilteringLogObserver,
    ILogFilterPredicate,
    ILogObserver,
    InvalidLogLevelError,
    LogEvent,
    LogLevel,
    LogLevelFilterPredicate,
    PredicateResult,
    formatEvent,
)
from twisted.python.components import Componentized
from twisted.python.logfile import LogFile
from zope.interface import implementer

from asyncplumber.log_text import escaped

LEVELS = ("debug", "info", "warn", "error")
FORMATS = ("text", "json")
# The key of an event that a worker has logged: its number, and what it told; see `Record`.
WORKER, TOLD = "asyncplumber_worker", "asyncplumber_told"
_RESERVED = frozenset({"time", "level", "logger", "message", "traceback", "worker"})
_FORMATTER = Formatter()

Record = dict[str, Any]  # one event, as a line of JSON has it


def level_of(text: str) -> str:
    """
    Return the name of a level.

    Raises:
        ValueError: There is no such level.  The message is a sentence for the user.
    """
    if text.lower() not in LEVELS:
        raise ValueError(f"{text!r} is none of {', '.join(LEVELS)}")
    return text.lower()


def format_of(text: str) -> str:
    """Do the same for a format."""
    if text.lower() not in FORMATS:
        raise ValueError(f"{text!r} is none of {', '.join(FORMATS)}")
    return text.lower()


def _time(seconds: float) -> str:
    """Return a time as RFC 3339 has it, in UTC."""
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _scalar(value: Any) -> Any:
    """Return what JSON has for a value, or its text."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)


def _fields(event: LogEvent) -> Record:
    """
    Return the values that the message shows, by their names.

    An event can have more: objects of the program, with what they know.  That is left out.
    """
    text = event.get("log_format")
    if not isinstance(text, str):
        return {}
    try:
        names = {name for _, name, _, _ in _FORMATTER.parse(text) if name}
    except ValueError:
        return {}
    return {
        f"{name}_" if name in _RESERVED else name: _scalar(event[name])
        for name in sorted(names)
        if name in event and name.isidentifier() and not name.startswith("log_")
    }


def _logger(event: LogEvent) -> str:
    """Return who has logged it; Twisted's former log knows only a protocol, if anything."""
    if "log_text" in event:
        system = str(event.get("log_system", "-"))
        return system if system != "-" else "twisted"
    return str(event.get("log_namespace", "-"))


def record_of(event: LogEvent) -> Record:
    """Return an event as a line of JSON has it; one of a worker as the worker has told it."""
    told = event.get(TOLD)
    if told is not None:
        return {**told, "worker": event[WORKER]}
    level = event.get("log_level")
    record = {
        "time": _time(event["log_time"]),
        "level": level.name if level is not None else "info",
        "logger": _logger(event),
        "message": formatEvent(event),
        **_fields(event),
    }
    failure = event.get("log_failure")
    if failure is not None:
        record["traceback"] = failure.getTraceback()
    return record


def as_json(record: Record) -> str:
    """Return a record as one line."""
    return json.dumps(record) + "\n"


def as_text(record: Record) -> str:
    """Return a record as a line, and its traceback as more lines, which are indented."""
    worker = f"worker {record['worker']}: " if "worker" in record else ""
    message = escaped(f"{worker}{record['message']}")
    text = f"{record['time']} [{escaped(record['logger'])}#{record['level']}] {message}\n"
    traceback = record.get("traceback")
    if traceback:
        lines = escaped(traceback, lines=True).splitlines()
        text += "".join(f"\t{line}\n" for line in lines)
    return text


def is_chatter(event: LogEvent) -> bool:
    """Whether an event is one that a driver has for each of its connections."""
    text = event.get("log_text", "")  # of Twisted's former log, which the driver uses as well
    if "TxMongo lost connection" in text[:30]:
        return True  # an error to the driver; what it means for the store, the store says
    if event.get("log_level", LogLevel.info) > LogLevel.info:
        return False
    return str(event.get("log_namespace")).startswith("txmongo.") or "TxMongo: " in text[:20]


@implementer(ILogObserver)
class LogWriter:
    """Writes each event to a file."""

    def __init__(self, file: TextIO, format: str) -> None:
        """
        Args:
            file: Where to.
            format: One of `FORMATS`.
        """
        with suppress(AttributeError, ValueError):  # a file of Twisted's, or of a test
            file.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]
        self._file = file
        self._line = as_json if format == "json" else as_text

    def __call__(self, event: LogEvent) -> None:
        """Write an event."""
        self._file.write(self._line(record_of(event)))
        self._file.flush()


@implementer(ILogFilterPredicate)
def _without_chatter(event: LogEvent) -> Any:
    return PredicateResult.no if is_chatter(event) else PredicateResult.maybe


def log_observer(file: TextIO, format: str, level: str) -> ILogObserver:
    """
    Return an observer for everything from a level on, but for what drivers chatter.

    Args:
        file: Where it writes.
        format: One of `FORMATS`.
        level: One of `LEVELS`.
    """
    levels = LogLevelFilterPredicate(defaultLogLevel=LogLevel.levelWithName(level))
    observer: ILogObserver = FilteringLogObserver(
        LogWriter(file, format), [_without_chatter, levels]
    )
    return observer


def told_by_worker(number: int, line: str) -> LogEvent | None:
    """
    Return the event that a line of a worker's output tells.

    Args:
        number: Of the worker.
        line: What it has written.

    Returns:
        The event; None if something else has written the line: the interpreter, a library.
    """
    try:
        told = json.loads(line)
        level = LogLevel.levelWithName(told["level"])
        moment = datetime.fromisoformat(told["time"]).timestamp()
        text = told["message"]
        if not isinstance(text, str) or not isinstance(told["logger"], str):
            raise TypeError
    except (ValueError, TypeError, LookupError, RecursionError, InvalidLogLevelError):
        return None
    return {
        "log_level": level,
        "log_namespace": told["logger"],
        "log_time": moment,
        "log_format": "worker {number}: {line}",
        "number": number,
        "line": text,
        WORKER: number,
        TOLD: told,
    }


class LoggedService(MultiService):
    """
    The service of a command line, which also says how its application logs.

    twistd asks the application for an observer (``ILogObserver``) before it makes one of its own.
    """

    def __init__(self, service: IService, observer: ILogObserver | None) -> None:
        """
        Args:
            service: What is run.
            observer: The log; None leaves it to twistd.
        """
        super().__init__()
        service.setServiceParent(self)
        self._observer = observer

    def setServiceParent(self, parent: Any) -> None:
        if self._observer is not None and isinstance(parent, Componentized):
            parent.setComponent(ILogObserver, self._observer)
        super().setServiceParent(parent)


def observer_for_twistd(
    twistd: Mapping[str, Any], format: str, level: str, reactor: Any
) -> ILogObserver | None:
    """
    Return the observer for a run of twistd, None if its user has chosen another log.

    Args:
        twistd: Its options.
        format: One of `FORMATS`, or empty.
        level: One of `LEVELS`, or empty.
        reactor: The reactor that runs.
    """
    name, nodaemon = twistd.get("logfile"), twistd.get("nodaemon")
    if twistd.get("logger") or twistd.get("syslog") or (name == "-" and not nodaemon):
        return None
    if name == "-" or (nodaemon and not name):
        return log_observer(sys.stdout, format or "text", level or "info")
    file: Any = LogFile.fromFullPath(name or "twistd.log")
    # As twistd does where it opens the file itself.
    if signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL:
        signal.signal(signal.SIGUSR1, lambda *_: reactor.callFromThread(file.rotate))
    return log_observer(file, format or "text", level or "info")


def configure_twist(twist: MutableMapping[str, Any], format: str, level: str) -> None:
    """
    Make ``twist`` log as wanted, which has options of its own for that.

    Args:
        twist: Its options.  Those count where ours are empty.
        format: One of `FORMATS`, or empty.
        level: One of `LEVELS`, or empty.
    """
    if level:
        twist["logLevel"] = LogLevel.levelWithName(level)
    chosen, least = format or twist["logFormat"], twist["logLevel"].name
    twist["fileLogObserverFactory"] = lambda file: log_observer(file, chosen, least)
