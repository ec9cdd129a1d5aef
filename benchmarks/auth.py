"""
What authentication costs: microseconds for a token, a POST and a WebSocket handshake.

::

    python -m benchmarks.auth

All is in one process and in memory, with no network and no store, so that the differences are those
of authentication.  Each figure is the best of several rounds, in CPU time.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from typing import Any

from asyncplumber.auth.authority import Authority, Parts
from asyncplumber.auth.keys import Keys
from asyncplumber.auth.tokens.claims import Rules
from asyncplumber.auth.tokens.jose import load_jwk
from asyncplumber.auth.tokens.signing_keys import Key, KeySet, Secret
from asyncplumber.auth.tokens.verifier import Issuer, Verifier
from asyncplumber.grant import Action
from asyncplumber.testing import MemoryServer
from asyncplumber.testing.server import NOW
from harness.tokens import APP, AUDIENCE, SECRET, claims, ec_key, okp_key, rsa_key, token

ROUNDS = 7
_KEY = "a key of a publisher 0123456789".replace(" ", "-")
_SIGNERS: Mapping[str, Any] = {
    "HS256": SECRET,
    "RS256": rsa_key(),
    "ES256": ec_key(),
    "Ed25519": okp_key(),
}
_HANDSHAKE = (
    "GET /events/user-42 HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n"
    "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
_POST = "POST /hooks/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 12\r\n"
_numbers = count()


def _tokens(alg: str, number: int) -> list[str]:
    """Return so many different tokens."""
    header = {"alg": alg, "kid": alg, "typ": "at+jwt"}
    return [
        token(
            claims(iat=NOW, exp=NOW + 3600, jti=f"t-{next(_numbers)}"), header, _SIGNERS[alg], alg
        )
        for _ in range(number)
    ]


def _keys() -> Iterator[Key]:
    yield Secret(SECRET, "HS256")
    for alg in ("RS256", "ES256", "Ed25519"):
        yield load_jwk({**_SIGNERS[alg].as_dict(private=False), "kid": alg})


def _verifier(seconds: Callable[[], float] = lambda: NOW) -> Verifier:
    return Verifier({APP: Issuer(Rules(audience=AUDIENCE), KeySet(_keys()))}, seconds)


def _best(work: Callable[[], object], number: int) -> float:
    """Return the microseconds of one of ``number`` pieces of work, in the best round."""
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.process_time()
        work()
        best = min(best, (time.process_time() - began) / number)
    return 1e6 * best


def verifying(alg: str, number: int) -> tuple[float, float]:
    """Return the microseconds for a new token, and for a known one."""
    tokens = _tokens(alg, number)

    def new() -> None:
        grant = _verifier().grant
        for text in tokens:
            grant(text, Action.SUBSCRIBE)

    known = _verifier()
    known.grant(tokens[0], Action.SUBSCRIBE)

    def again() -> None:
        for _ in range(number):
            known.grant(tokens[0], Action.SUBSCRIBE)

    return _best(new, number), _best(again, number)


def _server(is_open: bool) -> MemoryServer:
    authority = Authority(Parts(tokens=_verifier(), keys=Keys.of_publishers([_KEY])))
    return MemoryServer(
        plumber={"authority": None if is_open else authority}, store="memory:", idle_timeout=3600
    )


def _requests(head: str, credentials: list[str], body: str = "") -> list[bytes]:
    found = []
    for text in credentials:
        line = f"Authorization: Bearer {text}\r\n" if text else ""
        found.append(f"{head}{line}\r\n{body}".encode("ascii"))
    return found


def posting(credentials: list[str], number: int, forget: bool = False) -> float:
    """Return the microseconds of a POST; each uses the next credential, empty for none."""
    server = _server(is_open=not credentials[0])
    requests = _requests(_POST, credentials, '{"total": 7}')
    client = server.connect()

    def post() -> None:
        if forget:
            server.plumber.gate.authority.parts = Parts(tokens=_verifier())
        for index in range(number):
            client.send(requests[index % len(requests)])
        if b" 202 " not in client.value()[:15]:
            raise AssertionError(client.value()[:200])
        client.clear()

    return _best(post, number)


def connecting(credentials: list[str], number: int, forget: bool = False) -> float:
    """Return the microseconds of a connection with a handshake, and of its end."""
    server = _server(is_open=not credentials[0])
    requests = _requests(_HANDSHAKE, credentials)

    def connect() -> None:
        if forget:
            server.plumber.gate.authority.parts = Parts(tokens=_verifier())
        for index in range(number):
            client = server.connect()
            client.send(requests[index % len(requests)])
            if not client.value().startswith(b"HTTP/1.1 101 "):
                raise AssertionError(client.value()[:200])
            client.disconnect()

    return _best(connect, number)


def main(number: int = 300) -> int:
    """Print all figures.  ``number`` is how often each piece of work is done in a round."""
    print(f"{'µs of CPU time':<28} {'new':>8} {'known':>8}")
    for alg in _SIGNERS:
        new, known = verifying(alg, number)
        print(f"{'verify ' + alg:<28} {new:8.1f} {known:8.1f}")
    for name, measure in (("POST", posting), ("handshake", connecting)):
        print(f"{name + ', no authentication':<28} {'':>8} {measure([''], number):8.1f}")
        if measure is posting:
            print(f"{name + ', static key':<28} {'':>8} {measure([_KEY], number):8.1f}")
        for alg in _SIGNERS:
            tokens = _tokens(alg, number)
            new, known = measure(tokens, number, True), measure(tokens[:1], number)
            print(f"{name + ', ' + alg:<28} {new:8.1f} {known:8.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
