"""
The options of ``twistd asyncplumber``, each of which is an environment variable as well.

A wrong option is refused here, before anything starts, with a sentence that names the option.
"""

from __future__ import annotations

import os
import sys
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any, ClassVar
from urllib.parse import urlsplit

from twisted.internet.endpoints import serverFromString
from twisted.python import usage

from asyncplumber.auth.build import Configured, Sources
from asyncplumber.auth.keys import parse_keys
from asyncplumber.auth.networks import Networks, parse_address
from asyncplumber.auth.secret_files import SecretFile, read_or_inherit
from asyncplumber.auth.tokens.signing_keys import parse_secrets
from asyncplumber.option_help import help_text
from asyncplumber.option_list import (
    FLAGS,
    OPTIONS,
    PREFIX,
    STORES,
    variable_of,
)
from asyncplumber.server.descriptors import most_connections
from asyncplumber.server.loopback import LOCAL, is_local
from asyncplumber.starters.address import WebhookAddress
from asyncplumber.starters.secrets import parse_starter_secrets
from asyncplumber.stores import open_store
from asyncplumber.stores.retention import Retention

# The names of the files in $CREDENTIALS_DIRECTORY, each by the option that it stands for.
CREDENTIALS = {
    "peer-secret-file": "asyncplumber.peer-secret",
    "jwt-secret-file": "asyncplumber.jwt-secret",
    "publisher-key-file": "asyncplumber.publisher-key",
    "starter-secret-file": "asyncplumber.starter-secret",
}
SHORTEST_SECRET = 16  # bytes
AUTHENTICATION = ("auth", "jwt-secret-file", "publisher-key-file")  # files


def _handed(name: str) -> str:
    """Return the variable in which a worker finds what its parent has read from a file."""
    return f"{PREFIX}READ_{name.upper().replace('-', '_')}"


class Options(usage.Options):
    """The values: the command line wins over the environment, and that over the defaults."""

    synopsis = "[options]"
    # How the server was started.  ``asyncplumber serve`` puts its own name here.
    command: ClassVar[str] = "twistd asyncplumber"
    longdesc = (
        "Background tasks POST their results to /hooks/ACCOUNT.  The server pushes them to every "
        "subscriber of /events/ACCOUNT, by WebSocket, Server-Sent Events or long-poll."
    )
    sources: Sources
    configured: Configured  # what is in the sources
    starter_secrets: SecretFile | None
    optFlags = [[name, None, text] for name, text in FLAGS.items()]
    optParameters = [
        [option.name, option.short, option.default, option.text] for option in OPTIONS.values()
    ]

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        super().__init__()
        self._environ = environ
        self._hosts: list[str] = []  # the values on the command line, where --host may be repeated
        for option in OPTIONS.values():
            self[option.name] = environ.get(option.variable, option.default)
        for flag in FLAGS:
            given = environ.get(variable_of(flag), "")
            self[flag] = int(given not in ("", "0", "no", "false"))

    def getSynopsis(self) -> str:
        """Return the usage line.  Below ``asyncplumber serve`` it does not name twistd."""
        if self.command == "twistd asyncplumber":
            synopsis: str = super().getSynopsis()
            return synopsis
        return f"Usage: {self.command} {self.synopsis}"

    # What twistd asks

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """
        Read the command line.

        Under twistd, which would print its own usage before the error, an error is printed here.

        Raises:
            UsageError: An option is wrong, and twistd is not the caller.
            SystemExit: An option is wrong, and twistd is the caller.  The sentence is on standard
                error.
        """
        try:
            super().parseOptions(options)
        except usage.UsageError as error:
            if getattr(self, "parent", None) is None:
                raise
            sys.stderr.write(f"asyncplumber: {error}\n({self.command} --help lists them all)\n")
            raise SystemExit(1) from None

    def getUsage(self, width: int | None = None) -> str:
        """Return the help: the options by groups, in the units that they take."""
        return help_text(self.longdesc)

    def opt_host(self, names: str) -> None:
        """Add a name to those by which clients call this server."""
        self._hosts.append(names)
        self["host"] = " ".join(self._hosts)

    def opt_peer_secret(self, _: str) -> None:
        """Refuse a secret on the command line."""
        raise usage.UsageError(
            "--peer-secret: every user can read a command line in the list of processes.  Give "
            f"--peer-secret-file PATH, or {PREFIX}PEER_SECRET in the environment"
        )

    def opt_version(self) -> None:
        """Print the version and exit."""
        print(f"asyncplumber {version('asyncplumber')}")
        raise SystemExit(0)

    def postOptions(self) -> None:
        """
        Convert and check all values.

        Raises:
            UsageError: One of them is wrong.
        """
        self._given = {name: self[name] for name in OPTIONS}
        for option in OPTIONS.values():
            if option.convert is not None:
                text = self[option.name]
                try:
                    self[option.name] = option.convert(text)
                except ValueError as error:
                    # The very text of the environment was not replaced by the command line.
                    source = (
                        f" (from {option.variable})"
                        if text is self._environ.get(option.variable)
                        else ""
                    )
                    raise usage.UsageError(f"--{option.name}{source}: {error}") from None
        if not self["listen"]:
            self["listen"] = f"tcp:{self['port']}:interface=127.0.0.1:backlog=4096"
        self._find_secret()
        self._read_authentication()
        self._read_starter()
        self._check_endpoint()
        self._check_peers()
        self._check_peer_networks()
        self._check_store()

    # What makeService asks

    def environment(self) -> dict[str, str]:
        """
        Return the environment in which a worker finds these options.

        A secret in it does not show in the list of processes.
        """
        return {
            **os.environ,
            **{OPTIONS[name].variable: text for name, text in self._given.items()},
            **{variable_of(flag): str(int(self[flag])) for flag in FLAGS},
            **self._secrets_for_workers(),
            PREFIX + "WORKERS": "1",
        }

    def _secrets_for_workers(self) -> dict[str, str]:
        files = {
            "jwt-secret-file": self.sources.jwt_secrets,
            "publisher-key-file": self.sources.publisher_keys,
            "starter-secret-file": self.starter_secrets,
        }
        return {
            _handed(name): b64encode(file.text).decode("ascii")
            for name, file in files.items()
            if file is not None
        }

    def limits(self) -> dict[str, Any]:
        """Return the limits of the HTTP server, by the names of their parameters."""
        return {
            "head_limit": self["max-headers"],
            "bodies_limit": self["max-waiting"],
            "request_timeout": self["request-timeout"],
            "head_timeout": self["head-timeout"],
            "idle_timeout": self["idle-timeout"],
            "min_body_rate": self["min-body-rate"],
            "max_connections": self["max-connections"] or most_connections(),
        }

    # Checks

    def _find_secret(self) -> None:
        """Take the secret from the environment, a file, or systemd's ``LoadCredential=``."""
        if self["peer-secret"] and self["peer-secret-file"]:
            raise usage.UsageError(
                f"--peer-secret-file: {PREFIX}PEER_SECRET has a secret as well; give one of them"
            )
        path = self["peer-secret-file"] or self._credential("peer-secret-file")
        if path and not self["peer-secret"]:
            try:
                with open(path, encoding="utf-8") as file:
                    # An empty file is a secret that is too short, and not the same as no file.
                    self["peer-secret"] = file.read().strip() or "-"
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
                raise usage.UsageError(
                    f"--peer-secret-file: {path} cannot be read: {reason}"
                ) from None
        # A worker may have no right to read the file any more.
        self._given["peer-secret"], self._given["peer-secret-file"] = self["peer-secret"], ""
        if self["peer-secret"] and len(self["peer-secret"].encode()) < SHORTEST_SECRET:
            raise usage.UsageError(
                f"--peer-secret-file: a secret has at least {SHORTEST_SECRET} bytes"
            )

    def _credential(self, option: str) -> str:
        """Return the file that systemd's ``LoadCredential=`` gives for an option, or nothing."""
        folder = self._environ.get("CREDENTIALS_DIRECTORY", "")
        path = os.path.join(folder, CREDENTIALS[option])
        return path if os.path.isabs(path) and os.path.exists(path) else ""

    def _find_file(self, name: str) -> None:
        """Let an option be the file that systemd gives for it, and its path an absolute one."""
        if not self[name] and name in CREDENTIALS:
            self[name] = self._given[name] = self._credential(name)
        if self[name]:
            # The process may change its folder, and reads the files again when they change.
            self[name] = self._given[name] = os.path.abspath(self[name])

    def _read_starter(self) -> None:
        """Read the secrets that requests to the application are signed with."""
        name = "starter-secret-file"
        if isinstance(self["starter"], WebhookAddress):
            self._find_file(name)
        elif self[name]:
            raise usage.UsageError(f"--{name}: only what is POSTed to a --starter URL is signed")
        try:
            self.starter_secrets = self._secrets(name, parse_starter_secrets)
        except ValueError as error:
            raise usage.UsageError(str(error)) from None

    def _read_authentication(self) -> None:
        """Read all that says who may do what, and keep it in ``configured``."""
        for name in AUTHENTICATION:
            self._find_file(name)
        if not self["audience"]:
            raise usage.UsageError("--audience: it is a text, and not empty")
        try:
            self.sources = Sources(
                auth=self["auth"],
                jwt_secrets=self._secrets("jwt-secret-file", parse_secrets),
                publisher_keys=self._secrets("publisher-key-file", parse_keys),
                audience=self["audience"],
                every_origin="*" in self["allow-origin"],
            )
            self.configured = self.sources.read()
        except ValueError as error:
            raise usage.UsageError(str(error)) from None

    def _secrets(self, name: str, check: Callable[[bytes], object]) -> SecretFile | None:
        """Read a file with secrets, which a worker may have no right to read any more."""
        if not self[name]:
            return None
        handed = self._environ.get(_handed(name))
        inherited = b64decode(handed) if handed is not None else None
        try:
            return read_or_inherit(self[name], check, inherited)
        except ValueError as error:
            raise ValueError(f"--{name}: {error}") from None

    def _check_is_endpoint(self, option: str) -> None:
        from twisted.internet import reactor

        text: str = self[option]
        try:
            serverFromString(reactor, text)
        except Exception as error:
            raise usage.UsageError(
                f"--{option}: {text!r} is not a Twisted endpoint: {error}"
            ) from None
        if self["workers"] > 1 and text.partition(":")[0] not in ("tcp", "tcp6", "unix"):
            raise usage.UsageError(
                "--workers: several workers can share a tcp: or unix: endpoint; let a proxy do TLS"
            )

    def _check_endpoint(self) -> None:
        text: str = self["listen"]
        self._check_is_endpoint("listen")
        if self["private-listen"]:
            self._check_is_endpoint("private-listen")
        if not (is_local(text) or self.configured.decides or self["insecure"]):
            raise usage.UsageError(
                "--listen: nobody is authenticated, so only the loopback interface "
                "(interface=127.0.0.1) and UNIX sockets are safe.  --jwt-secret-file or --auth "
                "says who may do what; --insecure listens on others all the same"
            )

    def _check_peers(self) -> None:
        if self["workers"] > 1 and self["advertise-url"]:
            raise usage.UsageError(
                "--advertise-url: each of several workers has its own address; see --peer-host"
            )
        if self["peer-host"] in ("0.0.0.0", "::"):  # noqa: S104
            raise usage.UsageError(
                "--peer-host: name the one address at which other machines reach this one"
            )
        if self["peer-host"] not in LOCAL and not (self["peer-secret"] or self["insecure"]):
            raise usage.UsageError(
                "--peer-host: instances on several machines need a --peer-secret-file"
            )

    def _check_peer_networks(self) -> None:
        """An instance whose own address is in no network of its peers would not be told either."""
        if not self._given["peer-networks"]:
            return
        named = urlsplit(self["advertise-url"]).hostname or ""
        for option, host in (("advertise-url", named), ("peer-host", self["peer-host"])):
            address = parse_address(host)
            is_used = option == "advertise-url" or self["workers"] > 1
            if is_used and address is not None and address not in Networks(self["peer-networks"]):
                raise usage.UsageError(
                    f"--peer-networks: {host}, of --{option}, is in none of them"
                )

    def _check_store(self) -> None:
        """Find out what cannot work, without opening anything."""
        uri: str = self["store"]
        if not (uri == "memory:" or uri.startswith(("sqlite:", "mongodb:", "mongodb+srv:"))):
            # A URI may hold a password: only its scheme is repeated.
            raise usage.UsageError(
                f"--store: {uri.partition(':')[0]!r} is not a store; give {STORES}"
            )
        try:
            open_store(uri, Retention(), None)
        except ValueError as error:
            raise usage.UsageError(f"--store: {error}") from None
        if uri == "memory:" and self["workers"] > 1:
            raise usage.UsageError(
                "--workers: workers do not share their memory; give --store sqlite:PATH or "
                "mongodb://…"
            )
        if uri.startswith("sqlite:"):
            path = os.path.abspath(uri[7:].partition("?")[0])
            existing = path if os.path.exists(path) else os.path.dirname(path)
            if os.path.isdir(path) or not os.access(existing, os.W_OK):
                raise usage.UsageError(f"--store: {path} cannot be written")
