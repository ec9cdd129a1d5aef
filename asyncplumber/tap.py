"""
Options of ``twistd asyncplumber``, each also an environment variable; whatever is wrong is refused
here, by name.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

from twisted.application.service import IService
from twisted.internet.endpoints import TCP4ServerEndpoint, serverFromString
from twisted.internet.error import ReactorNotRunning
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.stdio import StandardIO
from twisted.internet.task import LoopingCall
from twisted.python import usage
from twisted.python.failure import Failure

from asyncplumber.auth.hosts import parse_hosts
from asyncplumber.auth.origins import parse_origin
from asyncplumber.clocks import steady
from asyncplumber.http.bodies import BODIES
from asyncplumber.server import signals
from asyncplumber.server.loopback import LOCAL, is_local
from asyncplumber.stores.retention import DAY, Retention

PREFIX = "ASYNCPLUMBER_"
CREDENTIAL = "asyncplumber.peer-secret"  # in $CREDENTIALS_DIRECTORY


def _number(
    kind: type[int] | type[float], least: float, most: float, unit: str
) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        try:
            number = kind(text)
        except ValueError:
            number = kind(least) - 1
        if not least <= number <= most:
            raise ValueError(
                f"{text!r} is not {'a whole' if kind is int else 'a'} number from {least:g} to {most:g}{unit}"
            )
        return number

    return convert


def _url(text: str) -> str:
    parts = urlsplit(text)
    if text and (
        parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment
    ):
        raise ValueError(f"{text!r} is not an http:// or https:// URL")
    parse_hosts(parts.hostname or "")
    return text


def _origins(text: str) -> tuple[str, ...]:
    origins = tuple(text.replace(",", " ").split())
    return tuple(origin if origin == "*" else parse_origin(origin) for origin in origins)


_SIZE = 2**40
_PARAMETERS: list[tuple[str, str | None, str, str, Callable[[str], Any] | None]] = [
    ("port", "p", "8080", "Port to listen on, on 127.0.0.1; 0 takes any that is free.", _number(int, 0, 65535, "")),
    ("listen", "l", "", "Twisted endpoint to listen on instead, such as ssl:443:privateKey=… or unix:/run/plumber.", None),
    ("store", "s", "sqlite:asyncplumber.sqlite", "Where events and hooks are kept: sqlite:PATH, memory: or mongodb://…", None),
    ("advertise-url", None, "", "URL at which other instances reach this one (default: that of the port).", _url),
    ("workers", "w", "1", "Processes that share the port.", _number(int, 1, 256, " workers")),
    ("peer-host", None, "127.0.0.1", "Address at which each worker listens for the other instances.", None),
    ("peer-port", None, "0", "Port of the first worker there, the next has the next; 0 takes any.", _number(int, 0, 65000, "")),
    ("history-length", None, "1000", "Events kept for each account.", _number(int, 1, 10**7, " events")),
    ("history-age", None, f"{DAY:.0f}", "Seconds that an event is kept.", _number(float, 1, 10 * 366 * DAY, " seconds")),
    ("lease", None, "15", "Seconds after which an instance that died is forgotten.", _number(float, 1, 3600, " seconds")),
    ("linger", None, "10", "Seconds that a hook outlives its last subscriber.", _number(float, 0, 3600, " seconds")),
    ("max-body", None, "1048576", "Bytes in the body of a POST.", _number(int, 1, _SIZE, " bytes")),
    ("max-headers", None, "16384", "Bytes in request line and headers.", _number(int, 256, _SIZE, " bytes")),
    ("max-unsent", None, "1048576", "Bytes that may wait for one slow subscriber.", _number(int, 1024, _SIZE, " bytes")),
    ("max-waiting", None, f"{BODIES}", "Bytes of large bodies that wait at once.", _number(int, 65536, _SIZE, " bytes")),
    ("max-subscribers", None, "100000", "Subscribers of this instance.", _number(int, 1, 10**7, " subscribers")),
    ("request-timeout", None, "30", "Seconds in which a request must arrive.", _number(float, 0.1, 3600, " seconds")),
    ("idle-timeout", None, "75", "Seconds that a connection without a request stays open.", _number(float, 1, 3600, " seconds")),
    ("allow-origin", None, "", "Origins whose pages may use it, such as https://*.example.com; * for all.", _origins),
    ("host", None, "", "Name by which clients may call us: push.example.com, *.example.com …; may be repeated.", parse_hosts),
    ("peer-secret", None, "", "Not here, where it shows in ps: ASYNCPLUMBER_PEER_SECRET, or see --peer-secret-file.", None),
    ("peer-secret-file", None, "", "File with the secret that instances sign with, 16 bytes or more (default: in the store).", None),
]  # fmt: skip


class Options(usage.Options):
    """The command line over the environment over the defaults."""

    synopsis = "[options]"
    longdesc = (
        "Results of background tasks are POSTed to /hooks/ACCOUNT and pushed to everyone who reads /events/ACCOUNT by "
        "WebSocket, Server-Sent Events or long-poll.  Every option can be given in the environment as well: --history-age is "
        f"{PREFIX}HISTORY_AGE."
    )
    optFlags = [
        [
            "insecure",
            None,
            "Listen on other interfaces than the loopback although nobody is authenticated yet.",
        ]
    ]

    optParameters = [[name, short, default, text] for name, short, default, text, _ in _PARAMETERS]

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        super().__init__()
        self._hosts: list[str] = []  # given on the command line, where the option can be repeated
        for name, _, default, _, _ in _PARAMETERS:
            self[name] = environ.get(PREFIX + name.upper().replace("-", "_"), default)
        self._environ = environ
        self["insecure"] = int(environ.get(PREFIX + "INSECURE", "") not in ("", "0", "no", "false"))

    def opt_host(self, names: str) -> None:
        self._hosts.append(names)
        self["host"] = " ".join(self._hosts)

    opt_host.__doc__ = next(text for name, _, _, text, _ in _PARAMETERS if name == "host")

    def opt_peer_secret(self, _: str) -> None:
        raise usage.UsageError(
            "--peer-secret: a secret on the command line shows in the list of processes; give --peer-secret-file FILE, or "
            f"{PREFIX}PEER_SECRET in the environment"
        )

    opt_peer_secret.__doc__ = next(
        text for name, _, _, text, _ in _PARAMETERS if name == "peer-secret"
    )

    def opt_version(self) -> None:
        """Print the version and exit."""
        print(f"asyncplumber {version('asyncplumber')}")
        raise SystemExit(0)

    def environment(self) -> dict[str, str]:
        """
        The environment in which a worker finds these options: a secret does not show in a list of
        processes.
        """
        options = {
            PREFIX + name.upper().replace("-", "_"): self._given[name] for name in self._given
        }
        return {
            **os.environ,
            **options,
            PREFIX + "INSECURE": str(int(self["insecure"])),
            PREFIX + "WORKERS": "1",
        }

    def postOptions(self) -> None:
        self._given = {name: self[name] for name, *_ in _PARAMETERS}
        for name, _, _, _, convert in _PARAMETERS:
            if convert is not None:
                try:
                    self[name] = convert(self[name])
                except ValueError as error:
                    raise usage.UsageError(f"--{name}: {error}") from None
        if not self["listen"]:
            self["listen"] = f"tcp:{self['port']}:interface=127.0.0.1:backlog=4096"
        self._find_secret()
        self._check_endpoint()
        self._check_store()

    def _find_secret(self) -> None:
        """
        From the environment, from the file, or from what systemd hands over (LoadCredential=).
        """
        if self["peer-secret"] and self["peer-secret-file"]:
            raise usage.UsageError(
                f"--peer-secret-file: there is a secret in {PREFIX}PEER_SECRET as well; give one of them"
            )
        handed = os.path.join(self._environ.get("CREDENTIALS_DIRECTORY", ""), CREDENTIAL)
        path = self["peer-secret-file"] or (
            handed if os.path.isabs(handed) and os.path.exists(handed) else ""
        )
        if path and not self["peer-secret"]:
            try:
                with open(path, encoding="utf-8") as file:
                    self["peer-secret"] = file.read().strip()
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
                raise usage.UsageError(
                    f"--peer-secret-file: {path} cannot be read: {reason}"
                ) from None
            self["peer-secret"] = (
                self["peer-secret"] or "-"
            )  # an empty file is too short, and not the same as none
        # A worker may have no right to read the file any more.
        self._given["peer-secret"], self._given["peer-secret-file"] = self["peer-secret"], ""
        if self["peer-secret"] and len(self["peer-secret"].encode()) < 16:
            raise usage.UsageError("--peer-secret-file: a secret has at least 16 bytes")

    def _check_endpoint(self) -> None:
        from twisted.internet import reactor

        text: str = self["listen"]
        try:
            serverFromString(reactor, text)
        except Exception as error:
            raise usage.UsageError(
                f"--listen: {text!r} is not a Twisted endpoint: {error}"
            ) from None
        kind = text.partition(":")[0]
        if self["workers"] > 1 and kind not in ("tcp", "tcp6", "unix"):
            raise usage.UsageError(
                "--workers: several workers can share a tcp: or unix: endpoint; let a proxy do TLS"
            )
        if self["workers"] > 1 and self["advertise-url"]:
            raise usage.UsageError(
                "--advertise-url: each of several workers has an address of its own; see --peer-host"
            )
        if self["peer-host"] in ("0.0.0.0", "::"):
            raise usage.UsageError(
                "--peer-host: name the one address at which other machines reach this one"
            )
        if self["peer-host"] not in LOCAL and not (self["peer-secret"] or self["insecure"]):
            raise usage.UsageError(
                "--peer-host: beyond this machine the instances need a --peer-secret-file"
            )
        if not is_local(text) and not self["insecure"]:
            raise usage.UsageError(
                "--listen: nobody is authenticated yet, so only the loopback interface (interface=127.0.0.1) and UNIX sockets "
                "are safe; --insecure listens on others all the same"
            )

    def _check_store(self) -> None:
        """Opens nothing, but finds out early what cannot work."""
        uri: str = self["store"]
        if not (uri == "memory:" or uri.startswith(("sqlite:", "mongodb:", "mongodb+srv:"))):
            raise usage.UsageError(
                f"--store: {uri.partition(':')[0]!r} is no store; there are sqlite:PATH, memory: and mongodb://…"
            )
        from asyncplumber.stores import open_store

        try:
            open_store(uri, Retention(), None)
        except ValueError as error:
            raise usage.UsageError(f"--store: {error}") from None
        if uri == "memory:" and self["workers"] > 1:
            raise usage.UsageError(
                "--workers: workers do not share their memory; take --store sqlite:PATH or mongodb://…"
            )
        if uri.startswith("sqlite:"):
            path = os.path.abspath(uri[7:].partition("?")[0])
            folder = os.path.dirname(path)
            if os.path.isdir(path) or not os.access(
                path if os.path.exists(path) else folder, os.W_OK
            ):
                raise usage.UsageError(f"--store: {path} cannot be written")


def _plumber(options: Options, reactor: Any) -> Any:
    from asyncplumber.plumber import Plumber

    try:
        return Plumber(
            options["store"],
            options["advertise-url"],
            retention=Retention(options["history-length"], options["history-age"]),
            lease=options["lease"],
            secret=options["peer-secret"].encode() or None,
            linger=options["linger"],
            subscribers=options["max-subscribers"],
            body_limit=options["max-body"],
            hosts=options["host"],
            reactor=reactor,
        )
    except ValueError as error:
        raise usage.UsageError(f"--store: {error}") from None


def _limits(options: Options) -> dict[str, Any]:
    return {
        "body_limit": options["max-body"],
        "head_limit": options["max-headers"],
        "unsent_limit": options["max-unsent"],
        "bodies_limit": options["max-waiting"],
        "request_timeout": options["request-timeout"],
        "idle_timeout": options["idle-timeout"],
        "origins": options["allow-origin"],
    }


def _worker(options: Options, place: str, reactor: Any) -> IService:
    """
    One of several workers: it accepts on its parent's socket, and has a port of its own for the
    other instances.
    """
    from asyncplumber.server.accept import Seat, Seats, SharedEndpoint
    from asyncplumber.server.service import Server
    from asyncplumber.server.shared_figures import NOTING, SharedFigures, WorkerFigures
    from asyncplumber.server.workers import FIGURES, LISTENING, READY, SEATS

    number, _, family = place.partition(":")
    # A terminal interrupts the whole group; it is the parent's word that counts.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    seat = Seat(Seats(open(SEATS, "r+b")), int(number))  # for as long as we live
    shared = SharedEndpoint(
        reactor, LISTENING, getattr(socket, f"AF_{family.upper()}".replace("AF_AF_", "AF_")), seat
    )
    port = options["peer-port"] + int(number) - 1 if options["peer-port"] else 0
    own = TCP4ServerEndpoint(reactor, port, interface=options["peer-host"])

    def ready(url: str) -> None:
        seat.serve(lambda: server.connected)
        noting = LoopingCall(about.combined)
        noting.clock = reactor
        noting.start(NOTING)
        reactor.addSystemEventTrigger("after", "shutdown", about.combined)
        os.write(READY, b"!")
        StandardIO(_ParentWatch(reactor), reactor=reactor)

    plumber = _plumber(options, reactor)
    about = plumber.about
    about.combine = WorkerFigures(SharedFigures(open(FIGURES, "r+b")), int(number)).combine
    endpoints = [
        (shared, "the socket of the parent"),
        (own, f"port {port} of {options['peer-host']}, for the other instances"),
    ]
    server = Server(plumber, endpoints, reactor, shares_port=True, ready=ready, **_limits(options))
    return server


class _ParentWatch(Protocol):
    """Stops the worker when its parent is gone, and with it the other end of standard input."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        with suppress(ReactorNotRunning):  # it may be about to stop already
            self._reactor.stop()


def makeService(options: Options) -> IService:
    """The service that twistd starts."""
    from twisted.internet import reactor

    from asyncplumber.server.service import Server
    from asyncplumber.server.workers import Supervisor

    steady(reactor)
    signals.handle(reactor)
    place = os.environ.get(PREFIX + "WORKER", "")
    if place:
        return _worker(options, place, reactor)
    endpoint, name = serverFromString(reactor, options["listen"]), options["listen"]
    if options["workers"] > 1:
        return Supervisor(options["workers"], endpoint, name, options.environment(), reactor)
    return Server(_plumber(options, reactor), [(endpoint, name)], reactor, **_limits(options))
