"""Options of ``twistd asyncplumber``, each also an environment variable; whatever is wrong is refused here, by name."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

from twisted.application.service import IService
from twisted.python import usage

from asyncplumber.stores.keeping import DAY, Keeping

PREFIX = "ASYNCPLUMBER_"
LOCAL = ("127.0.0.1", "::1", "localhost")


def _number(kind: type[int] | type[float], least: float, most: float, unit: str) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        try:
            number = kind(text)
        except ValueError:
            number = kind(least) - 1
        if not least <= number <= most:
            raise ValueError(f"{text!r} is not {'a whole' if kind is int else 'a'} number from {least:g} to {most:g}{unit}")
        return number

    return convert


def _url(text: str) -> str:
    parts = urlsplit(text)
    if text and (parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment):
        raise ValueError(f"{text!r} is not an http:// or https:// URL")
    return text


def _origins(text: str) -> tuple[str, ...]:
    origins = tuple(text.replace(",", " ").split())
    for origin in origins:
        parts = urlsplit(origin)
        if origin != "*" and (parts.scheme not in ("http", "https") or not parts.netloc or parts.path):
            raise ValueError(f"{origin!r} is not an origin such as https://www.example.com, nor *")
    return origins


_SIZE = 2**40
_PARAMETERS: list[tuple[str, str | None, str, str, Callable[[str], Any] | None]] = [
    ("port", "p", "8080", "Port to listen on, on 127.0.0.1; 0 takes any that is free.", _number(int, 0, 65535, "")),
    ("listen", "l", "", "Twisted endpoint to listen on instead, such as ssl:443:privateKey=… or unix:/run/plumber.", None),
    ("store", "s", "sqlite:asyncplumber.sqlite", "Where events and hooks are kept: sqlite:PATH, memory: or mongodb://…", None),
    ("public-url", None, "", "URL at which other instances reach this one (default: that of the port).", _url),
    ("history-length", None, "1000", "Events kept for each account.", _number(int, 1, 10**7, " events")),
    ("history-age", None, f"{DAY:.0f}", "Seconds that an event is kept.", _number(float, 1, 10 * 366 * DAY, " seconds")),
    ("lease", None, "15", "Seconds after which an instance that died is forgotten.", _number(float, 1, 3600, " seconds")),
    ("linger", None, "10", "Seconds that a hook outlives its last subscriber.", _number(float, 0, 3600, " seconds")),
    ("max-body", None, "1048576", "Bytes in the body of a POST.", _number(int, 1, _SIZE, " bytes")),
    ("max-headers", None, "16384", "Bytes in request line and headers.", _number(int, 256, _SIZE, " bytes")),
    ("max-unsent", None, "1048576", "Bytes that may wait for one slow subscriber.", _number(int, 1024, _SIZE, " bytes")),
    ("max-subscribers", None, "100000", "Subscribers of this instance.", _number(int, 1, 10**7, " subscribers")),
    ("request-timeout", None, "30", "Seconds in which a request must arrive.", _number(float, 0.1, 3600, " seconds")),
    ("idle-timeout", None, "75", "Seconds that a connection without a request stays open.", _number(float, 1, 3600, " seconds")),
    ("allow-origin", None, "", "Origins, beside our own, whose pages may subscribe and post; * for all.", _origins),
    ("secret", None, "", "Secret that instances sign with what they relay, of 16 bytes or more; better in the environment.", None),
]  # fmt: skip


class Options(usage.Options):
    """The command line over the environment over the defaults."""

    synopsis = "[options]"
    longdesc = (
        "Results of background tasks are POSTed to /hooks/ACCOUNT and pushed to everyone who reads /events/ACCOUNT by "
        "WebSocket, Server-Sent Events or long-poll.  Every option can be given in the environment as well: --history-age is "
        f"{PREFIX}HISTORY_AGE."
    )
    optFlags = [["insecure", None, "Listen on other interfaces than the loopback although nobody is authenticated yet."]]

    optParameters = [[name, short, default, text] for name, short, default, text, _ in _PARAMETERS]

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        super().__init__()
        for name, _, default, _, _ in _PARAMETERS:
            self[name] = environ.get(PREFIX + name.upper().replace("-", "_"), default)
        self["insecure"] = int(environ.get(PREFIX + "INSECURE", "") not in ("", "0", "no", "false"))

    def opt_version(self) -> None:
        """Print the version and exit."""
        print(f"asyncplumber {version('asyncplumber')}")
        raise SystemExit(0)

    def postOptions(self) -> None:
        for name, _, _, _, convert in _PARAMETERS:
            if convert is not None:
                try:
                    self[name] = convert(self[name])
                except ValueError as error:
                    raise usage.UsageError(f"--{name}: {error}") from None
        if not self["listen"]:
            self["listen"] = f"tcp:{self['port']}:interface=127.0.0.1:backlog=4096"
        self._check_endpoint()
        self._check_store()
        if self["secret"] and len(self["secret"].encode()) < 16:
            raise usage.UsageError("--secret: a secret has at least 16 bytes")

    def _check_endpoint(self) -> None:
        from twisted.internet import reactor
        from twisted.internet.endpoints import _parse, serverFromString

        try:
            serverFromString(reactor, self["listen"])
            words, named = _parse(self["listen"])
        except Exception as error:
            raise usage.UsageError(f"--listen: {self['listen']!r} is not a Twisted endpoint: {error}") from None
        local = words[0] in ("unix", "systemd", "fd") or named.get("interface") in LOCAL
        if not local and not self["insecure"]:
            raise usage.UsageError(
                "--listen: nobody is authenticated yet, so only the loopback interface (interface=127.0.0.1) and UNIX sockets "
                "are safe; --insecure listens on others all the same"
            )

    def _check_store(self) -> None:
        """Opens nothing, but finds out early what cannot work."""
        uri: str = self["store"]
        if not (uri == "memory:" or uri.startswith(("sqlite:", "mongodb:", "mongodb+srv:"))):
            raise usage.UsageError(f"--store: {uri.partition(':')[0]!r} is no store; there are sqlite:PATH, memory: and mongodb://…")
        if uri.startswith("sqlite:"):
            path = os.path.abspath(uri[7:].partition("?")[0])
            folder = os.path.dirname(path)
            if not uri[7:] or os.path.isdir(path) or not os.access(path if os.path.exists(path) else folder, os.W_OK):
                raise usage.UsageError(f"--store: {path} cannot be written")


def makeService(options: Options) -> IService:
    """The service that twistd starts."""
    from twisted.internet import reactor

    from asyncplumber.plumber import Plumber
    from asyncplumber.service import Server

    try:
        plumber = Plumber(
            options["store"],
            options["public-url"],
            keeping=Keeping(options["history-length"], options["history-age"], options["lease"]),
            secret=options["secret"].encode() or None,
            linger=options["linger"],
            subscribers=options["max-subscribers"],
            body_limit=options["max-body"],
            reactor=reactor,
        )
    except ValueError as error:
        raise usage.UsageError(f"--store: {error}") from None
    return Server(
        plumber,
        options["listen"],
        reactor,
        body_limit=options["max-body"],
        head_limit=options["max-headers"],
        unsent_limit=options["max-unsent"],
        request_timeout=options["request-timeout"],
        idle_timeout=options["idle-timeout"],
        origins=options["allow-origin"],
    )
