"""All options of ``twistd asyncplumber``: what each takes, its default, and the help about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from asyncplumber.auth.hosts import parse_hosts
from asyncplumber.auth.origins import parse_origin
from asyncplumber.auth.tokens.mint import AUDIENCE
from asyncplumber.core.tasks.settings import CALLBACK_RATE
from asyncplumber.http.bodies import MAX_LARGE_BYTES
from asyncplumber.http.client_address import TRUSTED, parse_trusted_proxies
from asyncplumber.relays.peer_networks import parse_peer_networks
from asyncplumber.server.logs import format_of, level_of
from asyncplumber.server.loopback import private_endpoint
from asyncplumber.server.units import count, duration, size
from asyncplumber.starters.address import parse_address
from asyncplumber.stores.retention import HISTORY_BYTES

PREFIX = "ASYNCPLUMBER_"
STORES = "sqlite:PATH, memory: or mongodb://…"
#: The options that take no value, with their sentences in the help.
FLAGS = {
    "insecure": "Listen beyond the loopback interface although nobody is authenticated.",
    "log-requests": "Log each request: method, path without query, status, size, time, address.",
    "page": "Serve the page at /, with a field for a token, also where clients are authenticated.",
}
_START_DEADLINE = "Time in which somebody has to report that a task began, or it is lost."
_TASK_DEADLINE = (
    "How long a task may be silent until it is lost, if its reports do not say.  0 is for ever."
)
_TASK_AGE = "How long a task is kept after its end."
_PROGRESS_INTERVAL = "Time between two progress events of one task.  The last one is always sent."
_MOST_BYTES = 2**40
_DAY = 86400


def variable_of(name: str) -> str:
    """Return the environment variable of an option."""
    return PREFIX + name.upper().replace("-", "_")


def _url(text: str) -> str:
    parts = urlsplit(text)
    if text and (
        parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment
    ):
        raise ValueError(f"{text!r} is not an http:// or https:// URL")
    parse_hosts(parts.hostname or "")
    return text


def _or_empty(convert: Callable[[str], str]) -> Callable[[str], str]:
    """Return a function that converts a text, and leaves an empty one as it is."""
    return lambda text: convert(text) if text else ""


def _origins(text: str) -> tuple[str, ...]:
    origins = tuple(text.replace(",", " ").split())
    return tuple(origin if origin == "*" else parse_origin(origin) for origin in origins)


def _optional_count(text: str) -> int | None:
    return int(count(1, 10**9)(text)) if text else None


@dataclass(frozen=True)
class Option:
    """
    One option that takes a value.

    Attributes:
        name: Its name on the command line, without the dashes.
        value: What the help shows in place of the value.
        default: The text that it has if nothing is given.
        text: The sentence in the help.
        convert: Makes the value of the text, or raises ValueError.  None leaves it as it is.
        short: A letter for the command line, or None.
    """

    name: str
    value: str
    default: str
    text: str
    convert: Callable[[str], Any] | None = None
    short: str | None = None

    @property
    def variable(self) -> str:
        """The environment variable that gives its default."""
        return variable_of(self.name)


GROUPS: Mapping[str, Sequence[Option]] = {
    "Where to listen": (
        Option(
            "port",
            "NUMBER",
            "8080",
            "Port on 127.0.0.1.  0 takes any port that is free.",
            count(0, 65535),
            "p",
        ),
        Option(
            "listen",
            "ENDPOINT",
            "",
            "Twisted endpoint in place of the port, such as ssl:443:privateKey=… or unix:PATH.",
            None,
            "l",
        ),
        Option(
            "host",
            "NAMES",
            "",
            "Host names by which clients call this server, such as push.example.com or "
            "*.example.com.  May be repeated.",
            parse_hosts,
        ),
        Option(
            "allow-origin",
            "ORIGINS",
            "",
            "Origins whose web pages may use this server, such as https://*.example.com.  "
            "* allows all.",
            _origins,
        ),
        Option(
            "private-listen",
            "ENDPOINT",
            "",
            "Second port, for operators: metrics, the admin page, and the other instances.  A "
            "number is a port on 127.0.0.1.  Who reaches it may do everything, without a "
            "credential.",
            private_endpoint,
        ),
        Option("workers", "NUMBER", "1", "Processes that share the port.", count(1, 256), "w"),
    ),
    "Authentication": (
        Option(
            "jwt-secret-file",
            "FILE",
            "",
            "File with secrets of tokens (HS256), one a line, of 32 bytes or more.  All verify, "
            "the first one signs.",
        ),
        Option(
            "audience",
            "TEXT",
            AUDIENCE,
            "Claim aud that tokens must have.",
        ),
        Option(
            "publisher-key-file",
            "FILE",
            "",
            "File with keys, one a line, of 16 characters or more.  Who sends one as bearer token "
            "may publish to every account, and start its tasks.",
        ),
        Option(
            "auth",
            "FILE",
            "",
            "File in TOML with issuers of tokens, keys, senders and the call-out.  "
            "asyncplumber check-config checks it.",
        ),
    ),
    "Where to keep events": (
        Option("store", "URI", "sqlite:asyncplumber.sqlite", f"Store: {STORES}", None, "s"),
        Option(
            "history-length",
            "NUMBER",
            "1,000",
            "Events that are kept for each account.",
            count(1, 10**7),
        ),
        Option(
            "history-bytes",
            "SIZE",
            f"{HISTORY_BYTES // 2**20}MiB",
            "Bytes of events that are kept for each account.  The newest event always is.",
            size(1, _MOST_BYTES),
        ),
        Option(
            "history-age",
            "DURATION",
            "1d",
            "How long an event is kept.",
            duration(1, 10 * 366 * _DAY),
        ),
    ),
    "Tasks": (
        Option(
            "starter",
            "ADDRESS",
            "",
            "What starts tasks: a URL of your application, to which they are POSTed, or a task of "
            "Celery as celery:MODULE:APP#TASK.  Without it, tasks are only reported.",
            parse_address,
        ),
        Option(
            "starter-secret-file",
            "FILE",
            "",
            "File with secrets of Standard Webhooks, one a line: whsec_ and base64.  Each signs "
            "the POSTs of --starter.",
        ),
        Option(
            "starter-timeout",
            "DURATION",
            "10s",
            "Time in which --starter has to answer.  Later than that, the task is started again "
            "with the same run.",
            duration(0.1, 600),
        ),
        Option(
            "public-url",
            "URL",
            "",
            "URL at which applications and other services reach this server: callback URLs begin "
            "with it.  Default: that of --advertise-url, or of the port.",
            _url,
        ),
        Option("hold", "DURATION", "25s", "How long a start waits for the end.", duration(0, 120)),
        Option("start-deadline", "DURATION", "10min", _START_DEADLINE, duration(1, 30 * _DAY)),
        Option("task-deadline", "DURATION", "15min", _TASK_DEADLINE, duration(0, 30 * _DAY)),
        Option("task-age", "DURATION", "1d", _TASK_AGE, duration(1, 10 * 366 * _DAY)),
        Option("progress-interval", "DURATION", "0.5s", _PROGRESS_INTERVAL, duration(0, 3600)),
        Option(
            "callback-rate",
            "NUMBER",
            str(CALLBACK_RATE),
            "POSTs that one callback URL may get in a minute, at each worker; 0 for no limit.",
            count(0, 1_000_000),
        ),
    ),
    "Cluster": (
        Option(
            "advertise-url",
            "URL",
            "",
            "URL at which the other instances reach this one directly.  Default: that of the port.",
            _url,
        ),
        Option(
            "peer-host",
            "ADDRESS",
            "127.0.0.1",
            "Address at which each worker listens for the other instances.",
        ),
        Option(
            "peer-port",
            "NUMBER",
            "0",
            "Port of the first worker there; the next worker has the next port.  "
            "0 takes any port that is free.",
            count(0, 65000),
        ),
        Option(
            "peer-secret-file",
            "PATH",
            "",
            "File with the secret that instances sign with, of 16 bytes or more.  "
            "Default: a secret in the store.",
        ),
        Option(
            "peer-secret",
            "",
            "",
            f"Refused on the command line, where every user can read it.  Give {PREFIX}PEER_SECRET "
            "in the environment, or --peer-secret-file.",
        ),
        Option(
            "lease",
            "DURATION",
            "15s",
            "How long an instance that died is remembered.",
            duration(1, 3600),
        ),
        Option(
            "linger",
            "DURATION",
            "10s",
            "How long an account stays registered after its last subscriber left.",
            duration(0, 3600),
        ),
        Option(
            "peer-networks",
            "NETWORKS",
            "",
            "Networks in which the other instances are: nothing is sent to any other.  Default: "
            "all but link-local ones, which have the services of clouds.",
            parse_peer_networks,
        ),
    ),
    "Limits": (
        Option("max-body", "SIZE", "1MiB", "Longest body of a POST.", size(1, _MOST_BYTES)),
        Option(
            "max-headers",
            "SIZE",
            "16KiB",
            "Longest request line and headers together.",
            size(256, _MOST_BYTES),
        ),
        Option(
            "max-waiting",
            "SIZE",
            f"{MAX_LARGE_BYTES // 2**20}MiB",
            "Memory for large bodies that wait at the same time.",
            size(65536, _MOST_BYTES),
        ),
        Option(
            "max-unsent",
            "SIZE",
            "1MiB",
            "Bytes that may wait for one slow subscriber.",
            size(1024, _MOST_BYTES),
        ),
        Option(
            "max-subscribers",
            "NUMBER",
            "100,000",
            "Subscribers of one process.",
            count(1, 10**7),
        ),
        Option(
            "request-timeout",
            "DURATION",
            "30s",
            "Time in which a body must arrive, or a response be taken.",
            duration(0.1, 3600),
        ),
        Option(
            "idle-timeout",
            "DURATION",
            "75s",
            "How long a connection without a request stays open.",
            duration(1, 3600),
        ),
        Option(
            "head-timeout",
            "DURATION",
            "10s",
            "Time in which the request line and the headers must arrive.",
            duration(0.1, 3600),
        ),
        Option(
            "min-body-rate",
            "SIZE",
            "500B",
            "Bytes per second of a body, on average, after its first 5 seconds.  0 is any.",
            size(0, _MOST_BYTES),
        ),
        Option(
            "max-connections",
            "NUMBER",
            "",
            "Connections of one process.  Default: its limit of open files, less 256.",
            _optional_count,
        ),
        Option(
            "trusted-proxies",
            "NETWORKS",
            TRUSTED,
            "Proxies that may tell the address of a client by X-Forwarded-For: networks such as "
            "10.0.0.0/8, loopback, unix, or none.",
            parse_trusted_proxies,
        ),
    ),
    "Log": (
        Option(
            "log-format",
            "FORMAT",
            "",
            "text, or json for one JSON object a line.  Default: text.",
            _or_empty(format_of),
        ),
        Option(
            "log-level",
            "LEVEL",
            "",
            "debug, info, warn or error: nothing less is logged.  Default: info.",
            _or_empty(level_of),
        ),
    ),
}
OPTIONS: Mapping[str, Option] = {
    option.name: option for options in GROUPS.values() for option in options
}
