"""
What the tests of attackers share: a server that is set up as on the internet, and credentials.

After each test it is asserted that no response was a 500, and that no secret and no credential is
in the log.  Nothing here shares code with the server: tokens are put together byte by byte.
"""

from __future__ import annotations

import hmac
import json
import os
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping
from functools import cache
from hashlib import sha256
from typing import Any, cast

from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from treq.testing import RequestTraversalAgent
from twisted.internet.defer import Deferred, succeed
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.resource import Resource

from asyncplumber.auth.build import LiveConfiguration, Sources
from asyncplumber.auth.fetch import Fetcher
from asyncplumber.testing import NOW, ClientResponse, MemoryClient, MemoryServer, parse_responses
from harness.frames import handshake_request

HOST = "push.example.com"
AUDIENCE = f"https://{HOST}"
APP, IDP = "https://app.example.com", "https://idp.example.com/realms/x"
SECRET = b"k1: a secret that only the application knows"
ADMIN = "plk_operator_0123456789abcdef"
JWKS_URL = f"{IDP}/certs"

Header = Mapping[str, Any]


def b64(data: bytes) -> str:
    """Encode as base64url without padding (RFC 7515, 2)."""
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def hs256(key: bytes) -> Callable[[bytes], bytes]:
    """Return what signs with HMAC-SHA256."""
    return lambda content: hmac.new(key, content, "sha256").digest()


@cache
def rsa_key(name: str) -> RSAPrivateKey:
    """Return a key of RSA; the same for the same name."""
    return generate_private_key(65537, 2048)


def rs256(key: RSAPrivateKey) -> Callable[[bytes], bytes]:
    """Return what signs with RSASSA-PKCS1-v1_5 and SHA-256."""
    return lambda content: key.sign(content, padding.PKCS1v15(), SHA256())


def rsa_jwk(key: RSAPrivateKey, kid: str) -> dict[str, str]:
    """Return the public part of a key as its issuer publishes it (RFC 7517)."""
    numbers = key.public_key().public_numbers()
    return {
        "kty": "RSA",
        "kid": kid,
        "alg": "RS256",
        "use": "sig",
        "n": b64(numbers.n.to_bytes(256, "big")),
        "e": b64(b"\x01\x00\x01"),
    }


def compact(
    header: Header | bytes, claims: Mapping[str, Any] | bytes, sign: Callable[[bytes], bytes]
) -> str:
    """Return a token of whatever is given; values are written as JSON, bytes as they are."""
    parts = [
        part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, claims)
    ]
    content = ".".join(map(b64, parts))
    return f"{content}.{b64(sign(content.encode()))}"


class Issuers(Resource):
    """The network: what is published at each URL, and how often it was asked for."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.published: dict[str, bytes | Callable[[Any], Any]] = {}
        self.asked: list[Any] = []

    def render_GET(self, request: Any) -> Any:
        self.asked.append(request)
        scheme = "http" if request.getHeader("host").startswith("127.") else "https"
        url = f"{scheme}://{request.getHeader('host')}{request.uri.decode()}"
        found = self.published.get(url)
        if found is None:
            request.setResponseCode(404)
            return b"not found"
        return found(request) if callable(found) else found


class Network:
    """Fetches from `Issuers`, in place of the real network."""

    def __init__(self, agent: Any, clock: Any) -> None:
        self.get = Fetcher(agent, clock).get

    def close(self) -> Deferred[None]:
        """Do nothing: no connection is open."""
        return succeed(None)


class AttackCase(SynchronousTestCase):
    """A server on the internet, at its own port; a subclass puts it into a site."""

    make_server: type[MemoryServer] = MemoryServer
    begin = NOW  # seconds since 1970

    def setUp(self) -> None:
        self.log: list[LogEvent] = []
        observer = cast(ILogObserver, self.log.append)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        self.secrets = {SECRET.decode(), ADMIN}
        self.given_out: set[str] = set()  # secrets that belong into a response
        self.clients: list[MemoryClient] = []
        self.started: list[MemoryServer] = []
        self.network = Issuers()
        self.network.published[JWKS_URL] = self.jwks(rsa_jwk(rsa_key("r1"), "r1"))
        self.agent = RequestTraversalAgent(self.network)
        self.folder = self.mktemp()
        os.mkdir(self.folder)
        self.server = self.start_server()

    @staticmethod
    def jwks(*members: Any) -> bytes:
        """Return a set of keys as it is published."""
        return json.dumps({"keys": list(members)}).encode()

    def start_server(self, **options: Any) -> MemoryServer:
        """
        Return a server that runs, with the ``--auth`` file of `toml`.

        Args:
            options: Those of `MemoryServer`; ``plumber`` are more of ``Plumber``.
        """
        clock = options.setdefault("clock", MemoryReactorClock())
        clock.rightNow = max(clock.rightNow, self.begin)
        sources = Sources(auth=self.file("auth.toml", self.toml().encode()))
        configured = sources.read()
        self.live = LiveConfiguration(
            sources, configured, Network(self.agent, clock), clock, clock.seconds
        )
        more = {
            "authority": self.live.authority,
            "hosts": configured.config.hosts,
            **options.pop("plumber", {}),
        }
        server = self.make_server(plumber=more, **options)
        connect = server.connect

        def remembered() -> MemoryClient:
            client = connect()
            self.clients.append(client)
            return client

        server.connect = remembered  # type: ignore[method-assign]
        self.started.append(server)
        self.settle(server)
        return server

    def file(self, name: str, content: bytes) -> str:
        """Return the path of a file that only we can read."""
        path = os.path.join(self.folder, name)
        with open(path, "wb") as file:
            file.write(content)
        os.chmod(path, 0o600)
        return os.path.abspath(path)

    def toml(self) -> str:
        """Return the file: the tokens of the application and of the IdP, and a key of an admin."""
        secret = {"kty": "oct", "kid": "k1", "alg": "HS256", "k": b64(SECRET)}
        self.secrets.add(secret["k"])
        self.file("app.jwks", self.jwks(secret))
        return f"""
            audience = "{AUDIENCE}"
            hosts = ["{HOST}"]
            [[issuer]]
            iss = "{APP}"
            keys_file = "app.jwks"
            [[issuer]]
            iss = "{IDP}"
            jwks_url = "{JWKS_URL}"
            [[key]]
            name = "operator"
            sha256 = "{sha256(ADMIN.encode()).hexdigest()}"
            admin = true
        """

    def settle(self, server: MemoryServer | None = None) -> None:
        """Let the server and the network come to rest."""
        for _ in range(4):
            self.agent.flush()
            (server or self.server).settle()

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.server.advance(seconds)
        self.settle()

    @property
    def now(self) -> float:
        """Seconds since 1970."""
        return float(self.server.clock.seconds())

    # Credentials

    def secret(self, text: str) -> str:
        """Remember a credential that must never be in the log, and return it."""
        self.secrets.add(text)
        return text

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Return claims of a good token for user-42; ``...`` leaves a claim out."""
        claims = {
            "iss": APP,
            "aud": AUDIENCE,
            "sub": "user-42",
            "iat": int(NOW),
            "exp": int(NOW) + 3600,
            "plumber": {"subscribe": ["user-42"], "publish": ["user-42"]},
            **changes,
        }
        return {name: value for name, value in claims.items() if value is not ...}

    def token(self, header: Header | None = None, **changes: Any) -> str:
        """Return a token that the application signed, with these changes to its claims."""
        full = {"alg": "HS256", "kid": "k1", "typ": "at+jwt", **(header or {})}
        full = {name: value for name, value in full.items() if value is not ...}
        return self.signed(full, self.claims(**changes), hs256(SECRET))

    def signed(
        self,
        header: Header | bytes,
        claims: Mapping[str, Any] | bytes,
        sign: Callable[[bytes], bytes],
    ) -> str:
        """Return any token, and remember that it must not be in the log."""
        token = compact(header, claims, sign)
        signature = token.rpartition(".")[2]
        if len(signature) > 8:
            self.secret(signature)
        return self.secret(token)

    def idp_token(self, kid: str = "r1", key: str = "r1", **changes: Any) -> str:
        """Return a token of the IdP."""
        header = {"alg": "RS256", "kid": kid, "typ": "at+jwt"}
        return self.signed(header, self.claims(**{"iss": IDP, **changes}), rs256(rsa_key(key)))

    # Requests

    def send(self, method: str, target: str, *lines: str, body: bytes = b"") -> MemoryClient:
        """Return a client that has sent a request; a Host is added unless there is one."""
        head = [f"{method} {target} HTTP/1.1"]
        if not any(line.lower().startswith("host:") for line in lines):
            head.append(f"Host: {HOST}")
        head += lines
        if body or (method == "POST" and not any("ontent-Length" in line for line in lines)):
            head.append(f"Content-Length: {len(body)}")
        client = self.server.connect()
        client.send("\r\n".join([*head, "", ""]).encode("utf-8", "surrogateescape") + body)
        self.settle()
        return client

    def ask(self, method: str, target: str, *lines: str, body: bytes = b"") -> ClientResponse:
        """Send a request, and return its response."""
        client = self.send(method, target, *lines, body=body)
        received = client.received()
        client.disconnect()
        return parse_responses(received, method != "HEAD")[-1]

    def post(self, account: str, *lines: str, body: bytes = b"1") -> ClientResponse:
        """Send an event."""
        return self.ask("POST", f"/hooks/{account}", *lines, body=body)

    def handshake(self, account: str, *lines: str) -> MemoryClient:
        """Return a client that has asked for a WebSocket."""
        client = self.server.connect()
        request = handshake_request(f"/events/{account}", *lines)
        client.send(request.replace(b"Host: localhost", f"Host: {HOST}".encode()))
        self.settle()
        return client

    @staticmethod
    def bearer(token: str) -> str:
        """Return the header that carries a token."""
        return f"Authorization: Bearer {token}"

    def statuses(self, account: str, *lines: str) -> list[int]:
        """Return what subscribing is answered with: WebSocket, event stream, long-poll."""
        socket = self.handshake(account, *lines)
        stream = self.send("GET", f"/events/{account}", "Accept: text/event-stream", *lines)
        poll = self.send("GET", f"/events/{account}?wait=0", *lines)
        found = []
        for client in (socket, stream, poll):
            found.append(int(client.received().split(b" ", 2)[1]))
            client.disconnect()
        return found

    # What must hold

    def refused(self, *lines: str, account: str = "user-42") -> None:
        """Assert that a credential is an invalid token, for a POST and on each transport."""
        reply = self.post(account, *lines)
        self.assertEqual(reply.status, 401, lines)
        self.assertEqual(
            reply.headers[b"www-authenticate"],
            b'Bearer realm="asyncplumber", error="invalid_token"',
        )
        self.assertEqual(self.statuses(account, *lines), [401] * 3, lines)
        self.nothing_stored()

    def bad(self, token: str) -> None:
        """Assert that a token is refused as a bearer token."""
        self.secret(token)
        self.refused(self.bearer(token))

    def good(self, token: str, account: str = "user-42") -> None:
        """Assert that a token is accepted, for a POST and on each transport."""
        self.assertEqual(self.post(account, self.bearer(token)).status, 202)
        self.assertEqual(self.statuses(account, self.bearer(token)), [101, 200, 200])

    def nothing_stored(self) -> None:
        """Assert that no request left anything."""
        plumber = self.server.plumber
        self.assertEqual((plumber.intake.accepted, plumber.hub.accounts), (0, []))

    def tearDown(self) -> None:
        """Stop, so that nothing is under way any more, and assert what holds after each attack."""
        for server in self.started:
            server.stop()
            server.advance(10)
        sent = [client.value() for client in self.clients]
        for data in sent:
            self.assertNotIn(b"HTTP/1.1 500 ", data)
        text = "\n".join(map(self.log_text, self.log))
        for secret in self.secrets:
            raw = secret.encode("utf-8", "surrogateescape")
            for form in (secret, b64(raw)):
                self.assertFalse(len(form) > 7 and form in text, "a secret is in the log")
            if len(raw) > 7 and secret not in self.given_out:
                self.assertFalse(any(raw in data for data in sent), "a secret is in a response")

    @staticmethod
    def log_text(event: LogEvent) -> str:
        """Return all that an observer could write of a log event."""
        failure = event.get("log_failure")
        traceback = failure.getTraceback() if isinstance(failure, Failure) else ""
        return "\n".join([formatEvent(event), traceback, *map(repr, event.values())])


def json_of(reply: ClientResponse) -> Any:
    """Return the JSON of a response."""
    return json.loads(reply.body)
