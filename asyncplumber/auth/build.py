"""
Builds the authority from what is configured, and renews it when the files change.

Options and the ``--auth`` file add up: the file has issuers and keys, and the options have one more
issuer, whose tokens name no issuer of the file, and some more keys.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from asyncplumber.auth.assembly import Assembly
from asyncplumber.auth.authority import Authority, End, Parts
from asyncplumber.auth.config import NOTHING, Config, load
from asyncplumber.auth.fetch import Fetch, Fetcher
from asyncplumber.auth.keys import parse_keys, publishers
from asyncplumber.auth.secret_files import SecretFile, read_secret_file
from asyncplumber.auth.tokens.claims import PLAIN_TYPES, Rules
from asyncplumber.auth.tokens.mint import AUDIENCE
from asyncplumber.auth.tokens.signing_keys import Secrets, parse_secrets
from asyncplumber.auth.tokens.verifier import Issuer
from asyncplumber.auth.watched_file import WatchedFiles
from asyncplumber.figures import Metric

T = TypeVar("T")


@dataclass(frozen=True)
class Configured:
    """
    What was read.

    Attributes:
        config: What the ``--auth`` file says.
        secrets: Those of ``--jwt-secret-file``.
        keys: Those of ``--publisher-key-file``.
    """

    config: Config = NOTHING
    secrets: tuple[bytes, ...] = field(default=(), repr=False)
    keys: tuple[str, ...] = field(default=(), repr=False)

    @property
    def decides(self) -> bool:
        """Whether anything says who may do what."""
        return self.config.decides or bool(self.secrets) or bool(self.keys)


@dataclass(frozen=True)
class Sources:
    """
    Where it is said who may do what; an empty name stands for nothing.

    Attributes:
        auth: The ``--auth`` file.
        jwt_secrets: The file with secrets of HS256.
        publisher_keys: The file with keys that may publish to every account and start its tasks.
        audience: The claim ``aud`` of tokens, if the ``--auth`` file does not say it.
        every_origin: Whether the pages of all origins may use this server.
    """

    auth: str = ""
    jwt_secrets: SecretFile | None = None
    publisher_keys: SecretFile | None = None
    audience: str = AUDIENCE
    every_origin: bool = False

    @property
    def paths(self) -> Sequence[str]:
        """The files."""
        files = [file.path for file in (self.jwt_secrets, self.publisher_keys) if file is not None]
        return [self.auth, *files] if self.auth else files

    def read_again(self) -> Configured:
        """Read all files now.  Raises ValueError as `read` does."""
        return replace(
            self,
            jwt_secrets=_read_again("jwt-secret-file", self.jwt_secrets),
            publisher_keys=_read_again("publisher-key-file", self.publisher_keys),
        ).read()

    def read(self) -> Configured:
        """
        Read the ``--auth`` file, and what is in the others.

        Raises:
            ValueError: Something is wrong.  The sentence names the option, and has no secret.
        """
        configured = Configured(
            _named("auth", load, self.auth) if self.auth else NOTHING,
            _parsed("jwt-secret-file", parse_secrets, self.jwt_secrets),
            _parsed("publisher-key-file", parse_keys, self.publisher_keys),
        )
        if self.auth and not configured.decides:
            raise ValueError(f"--auth: {self.auth} does not say who may do what")
        if configured.config.cookie is not None and not (
            configured.secrets or configured.config.issuers
        ):
            raise ValueError(
                f"--auth: {self.auth}: [cookie] has a token, so there is an [[issuer]], or "
                "--jwt-secret-file"
            )
        if self.every_origin and configured.config.has_ambient_credentials:
            raise ValueError(
                "--allow-origin: with * the pages of anybody could act as their visitors, whose "
                f"cookies count ([cookie] or [callout] in {self.auth}); name the origins"
            )
        return configured


def _named(option: str, read: Callable[[str], T], path: str) -> T:
    try:
        return read(path)
    except ValueError as error:
        raise ValueError(f"--{option}: {error}") from None


def _read_again(option: str, file: SecretFile | None) -> SecretFile | None:
    if file is None:
        return None
    return SecretFile(file.path, _named(option, read_secret_file, file.path))


def _parsed(
    option: str, parse: Callable[[bytes], tuple[T, ...]], file: SecretFile | None
) -> tuple[T, ...]:
    if file is None:
        return ()
    try:
        return parse(file.text)
    except ValueError as error:
        raise ValueError(f"--{option}: {file.path}: {error}") from None


class Connections(Protocol):
    """What fetches."""

    @property
    def get(self) -> Fetch:
        """Fetches."""

    def close(self) -> Deferred[None]:
        """Close the connections that are open."""


class LiveConfiguration:
    """What is configured, in use: it stands behind an authority, whose parts it renews."""

    _log = Logger()

    def __init__(
        self,
        sources: Sources,
        configured: Configured,
        connections: Connections,
        clock: Any,
        now: Callable[[], float],
    ) -> None:
        """
        Args:
            sources: What is read again.
            configured: What was read of them just now.
            connections: For what has to be fetched.
            clock: A clock that is never set.
            now: Returns the seconds since 1970.
        """
        self._sources = sources
        self._configured = configured
        self._connections = connections
        self._assembly = Assembly(connections.get, clock, now)
        self.authority = Authority(self._parts(configured), self)
        self._files = WatchedFiles(self._paths, self._read_again, clock)

    def _parts(self, configured: Configured) -> Parts:
        audience = configured.config.audience or self._sources.audience
        other = None
        if configured.secrets:
            other = Issuer(Rules(audience=audience, types=PLAIN_TYPES), Secrets(configured.secrets))
        keys = publishers(configured.keys)
        return self._assembly.parts(configured.config, audience=audience, other=other, keys=keys)

    def _paths(self) -> Sequence[str]:
        return list(dict.fromkeys([*self._sources.paths, *self._configured.config.files]))

    def _read_again(self) -> None:
        configured = self._sources.read_again()
        for name in ("hosts", "limits"):  # what the authority has no part in
            if getattr(configured.config, name) != getattr(self._configured.config, name):
                self._log.warn(
                    "{name} changed in {path}: restart the server",
                    name=name,
                    path=self._sources.auth,
                )
        self._configured = configured
        self.authority.parts = self._parts(configured)

    # See `authority.Backing`

    def start(self) -> None:
        """Fetch keys, ask about open streams, and watch the files, from now on."""
        self._assembly.start()
        self._files.startService()

    def stop(self) -> Deferred[None]:
        """Do so no more, and close the idle connections."""
        self._files.stopService()
        self._assembly.stop()
        return self._connections.close()

    def check_ready(self) -> None:
        """Raise `Unavailable` if the keys of an issuer were never fetched."""
        self._assembly.check_ready()

    def metrics(self) -> Sequence[Metric]:
        """Return what is counted and measured."""
        return self._assembly.metrics()

    def end_by(self, end: End) -> None:
        """Let this end the streams that the application refuses."""
        self._assembly.end_by(end)


def build_authority(
    sources: Sources, reactor: Any, now: Callable[[], float], configured: Configured | None = None
) -> Authority | None:
    """
    Return the authority; None if no authentication is configured.

    Args:
        sources: Where it is configured.
        reactor: The reactor to run on.
        now: Returns the seconds since 1970.
        configured: What was read of the sources just now; None: they are read.

    Raises:
        ValueError: Something in the sources is wrong.
    """
    configured = configured or sources.read()
    if not configured.decides:
        return None
    connections = Fetcher.over_treq(reactor)
    return LiveConfiguration(sources, configured, connections, reactor, now).authority
