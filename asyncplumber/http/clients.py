"""Who the clients are, for limits: where each is, what it may do at most, and what it has open."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from twisted.internet.interfaces import ISSLTransport

from asyncplumber.auth.limits.client_limits import ClientLimits, Hold, subject_key
from asyncplumber.auth.limits.settings import NO_LIMITS, LimitSettings
from asyncplumber.clocks import SteadyClock
from asyncplumber.errors import InvalidToken, NotAllowed, PlumberError
from asyncplumber.figures import Gauge
from asyncplumber.grant import Grant
from asyncplumber.http.client_address import NOWHERE, ClientAddresses, Peer, TrustedProxies
from asyncplumber.http.request import Request
from asyncplumber.interfaces import IAuthority
from asyncplumber.wire.fields import Headers

# An expired credential was good once: nobody guesses it, and it is refused before any signature is
# verified.  A house full of laptops that wake up must not be locked out.
_HARMLESS = frozenset({"expired", "revoked"})
_BEARER_PROTOCOL = b"plumber.bearer."


class NotEncrypted(NotAllowed):
    """A credential came over plain HTTP, where everybody on the way can read it (RFC 6750, 5.3)."""

    code = "not-encrypted"
    default = (
        "credentials are taken over https only; a proxy in front of this server that speaks https "
        "has to be one of --trusted-proxies"
    )


def _has_bearer(headers: Headers) -> bool:
    return b"authorization" in headers or _BEARER_PROTOCOL in headers.get(
        b"sec-websocket-protocol", b""
    )


class Visit:
    """
    A subscriber, as the limits see it.

    Attributes:
        key: What the limits of subjects count it by; empty where they do not apply.
    """

    __slots__ = ("_address", "_limits", "_place", "_subject", "key")

    def __init__(
        self,
        limits: ClientLimits,
        key: str,
        place: str,
        address: Hold | None,
        subject: Hold | None,
    ) -> None:
        self._limits = limits
        self._place = place  # the key of its address
        self._address = address
        self._subject = subject
        self.key = key

    def replayed(self, size: int) -> None:
        """Count so many bytes that were read from the history for it."""
        self._limits.replayed(self.key, size)

    def check_post(self, grant: Grant, size: int) -> None:
        """Count what it sends as a POST of so many bytes.  Raises `TooManyRequests`."""
        self._limits.check_post(grant, self._place, size)

    def opened(self, account: str) -> None:
        """Note that this account is open because of it."""
        self._limits.account_opened(account, self.key)

    def release(self) -> None:
        """Count it no more.  Harmless if it was released before."""
        for hold in (self._address, self._subject):
            if hold is not None:
                hold.release()


class Clients:
    """The clients of this instance."""

    def __init__(
        self,
        trusted: TrustedProxies | None = None,
        limits: ClientLimits | None = None,
        *,
        insecure: bool = True,
    ) -> None:
        """
        Args:
            trusted: Who may tell the address of a client; None for this machine only.
            limits: What each client may do at most; None for no limits at all.
            insecure: Whether credentials are taken over plain HTTP from other machines.
        """
        self.limits = limits or ClientLimits(NO_LIMITS, SteadyClock.seconds)
        self._addresses = ClientAddresses(trusted)
        self._insecure = insecure
        #: Tells about `--insecure`.
        self.figure = Gauge(
            "insecure", "1 with --insecure, else 0.", lambda: float(insecure), merge="max"
        )

    # Connections

    def peer(self, address: Any) -> Peer:
        """Return the other end of a connection, from the address that was accepted."""
        return self._addresses.peer(address)

    def peer_of(self, connection: Any, accepted: Peer | None = None) -> Peer:
        """
        Return the other end of a connection, or of that of a twisted.web request.

        Args:
            connection: It may tell another address than the socket, by HAProxy's PROXY protocol.
            accepted: The other end of the socket, which is believed about that only if it is
                trusted; None if it is not known.
        """
        is_request = hasattr(connection, "getClientAddress")
        address = connection.getClientAddress() if is_request else connection.getPeer()
        encrypted = connection.isSecure() if is_request else ISSLTransport.providedBy(connection)
        peer = self._addresses.peer(address)
        if accepted is not None and not accepted.is_trusted:
            peer = accepted
        return peer._replace(is_encrypted=True) if encrypted else peer

    # Requests

    def address_of(self, request: Request | None, connection: Any) -> str:
        """Return the address of a client, for the log; see `Gate.address_of`."""
        if request is not None and request.client is not NOWHERE:
            return request.client.text
        peer = self.peer_of(connection)
        headers = request.headers if request is not None else {}
        return self._addresses.client(peer, headers).text

    def locate(self, request: Request, peer: Peer) -> None:
        """Note on a request where its client is."""
        request.client = self._addresses.client(peer, request.headers)

    def check_credential(self, request: Request, peer: Peer) -> None:
        """
        Refuse a request before its credential is looked at.

        Raises:
            TooManyRequests: Too many bad ones came from its address.
            NotEncrypted: It came over plain HTTP from another machine that is no trusted proxy, or
                a proxy says that this is how it came there.
        """
        self.limits.check_failures(request.client.key)
        if self._insecure or peer.is_encrypted or not _has_bearer(request.headers):
            return
        if peer.is_trusted:
            # What a proxy asks on its own account has no key.  It came from nowhere else.
            told = request.headers.get(b"x-forwarded-proto", b"https")
            told = told.partition(b",")[0].strip().lower()
            encrypted = told in (b"https", b"wss") or not request.client.key
        else:
            encrypted = peer.is_local
        if not encrypted:
            raise NotEncrypted

    def check_failed(self, request: Request, error: PlumberError) -> None:
        """
        Count a bad credential, if ``error`` says that it was one.

        A bad signature of a sender does not count.  Everybody can let GitHub send one, from the
        addresses from which the good ones come.
        """
        if isinstance(error, InvalidToken) and error.reason not in _HARMLESS:
            self.limits.failed(request.client.key)

    def check_post(self, request: Request, grant: Grant, size: int) -> None:
        """Count a POST of an event.  Raises `TooManyRequests`."""
        self.limits.check_post(grant, request.client.key, size)

    def check_bytes(self, request: Request, grant: Grant, size: int) -> None:
        """Count bytes of a POST that was counted without them.  Raises `TooManyRequests`."""
        self.limits.check_post(grant, request.client.key, size, counted_before=True)

    def check_read(self, request: Request) -> None:
        """Count a question about a task, as a long-poll.  Raises `TooManyRequests`."""
        self.limits.check_poll(request.client.key)

    def visit(
        self,
        request: Request,
        grant: Grant,
        *,
        is_poll: bool,
        resumes: bool,
        opens: bool,
        is_counted: bool,
    ) -> Visit | None:
        """
        Count a subscriber.

        Args:
            request: The request by which it comes.
            grant: What it may do.
            is_poll: Whether it is a long-poll, and no stream.
            resumes: Whether it wants events of the history.
            opens: Whether nobody else is subscribed to its account here.
            is_counted: Whether its connection is one of its address already.

        Returns:
            What it counts as; None without limits.

        Raises:
            TooManyRequests: A limit refuses it, and it counts as nothing that is open.
        """
        limits = self.limits
        if not limits.in_force:
            return None
        address = request.client.key
        key = subject_key(grant, address)
        if resumes:
            limits.check_replay(key)
        if opens:
            limits.check_account(key)
        if is_poll:
            limits.check_poll(address)
        else:
            limits.check_handshake(address)
        connection = None if is_counted else limits.connect(address)
        try:
            subject = limits.stream(key)
        except PlumberError:
            if connection is not None:
                connection.release()
            raise
        return Visit(limits, key, address, connection, subject)


class ClientPolicy(NamedTuple):
    """
    How clients are treated.

    Attributes:
        limits: What each may do at most.  None: the defaults where there is authentication, and no
            limits where there is none, because then everybody is trusted.
        trusted_proxies: Who may tell the address of a client.
        insecure: Whether credentials are taken over plain HTTP from other machines.
    """

    limits: LimitSettings | None = None
    trusted_proxies: TrustedProxies = TrustedProxies()
    insecure: bool = False

    def apply(self, seconds: Callable[[], float], authority: IAuthority | None) -> Clients:
        """
        Return the clients of an instance.

        Args:
            seconds: Returns the time in seconds, by a clock that is never set.
            authority: Says what a credential allows; None where there is no authentication.
        """
        settings = self.limits or (LimitSettings() if authority is not None else NO_LIMITS)
        limits = ClientLimits(settings, seconds)
        return Clients(self.trusted_proxies, limits, insecure=self.insecure)


DEFAULT_POLICY = ClientPolicy()
