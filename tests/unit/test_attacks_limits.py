"""Attacks by numbers: connections, slow requests, bad tokens, accounts, lies about addresses."""

from __future__ import annotations

from twisted.internet.address import IPv4Address
from twisted.logger import formatEvent

from asyncplumber.auth.limits.settings import LimitSettings
from asyncplumber.http.clients import ClientPolicy
from asyncplumber.testing import MemoryClient
from harness.mounted import MountedServer
from tests.attackers import HOST, AttackCase

MALLORY, BOB = "203.0.113.5", "198.51.100.7"
BIDI = "\u202egnp.exe\u2066"  # a reader sees "exe.png", and what follows the other way round


class LimitAttacks(AttackCase):
    """Row 25, behind a proxy on the same machine that tells the addresses."""

    def at(self, address: str) -> str:
        """Return the header by which the proxy tells an address."""
        return f"X-Forwarded-For: {address}"

    def test_25_a_flood_of_bad_tokens(self) -> None:
        """It is answered with 429 after the burst, and another address is served as before."""
        found = []
        for number in range(300):
            token = self.secret(f"nonsense-{number:08}")
            found.append(self.post("user-42", self.bearer(token), self.at(MALLORY)).status)
        burst = LimitSettings().failures_per_address
        assert burst is not None
        self.assertEqual(found, [401] * int(burst.burst) + [429] * (300 - int(burst.burst)))
        self.assertEqual(
            self.statuses("user-42", self.bearer("x" * 20), self.at(MALLORY)), [429] * 3
        )
        good = self.bearer(self.token())
        self.assertEqual(self.post("user-42", good, self.at(BOB)).status, 202)
        self.assertEqual(self.statuses("user-42", good, self.at(BOB)), [101, 200, 200])
        # The same address is served again when it has paused.
        self.advance(4)
        self.assertEqual(self.post("user-42", good, self.at(MALLORY)).status, 202)
        # One line for all of them, and not a line each.
        lines = [event for event in self.log if "refused" in formatEvent(event)]
        self.assertLess(len(lines), 10)

    def test_25_what_the_client_writes_itself_counts_for_nothing(self) -> None:
        """The proxy adds the true address on the right."""
        for number in range(30):
            lie = self.at(f"10.0.0.{number}, {MALLORY}")
            last = self.post("user-42", self.bearer(f"nonsense-{number:08}"), lie)
        self.assertEqual(last.status, 429)
        self.assertEqual(last.headers[b"retry-after"].isdigit(), True)
        self.assertEqual(self.post("user-42", self.bearer(self.token()), self.at(BOB)).status, 202)

    def test_25_opening_ten_thousand_accounts(self) -> None:
        """A token for a prefix opens a hundred at once, and leaves no row by reading."""
        line = self.bearer(self.token(plumber={"subscribe": [{"prefix": "x"}]}))
        rate = LimitSettings().new_accounts_per_subject
        assert rate is not None
        found = []
        for number in range(200):
            # Each from another address: the subject is what counts.
            address = self.at(f"198.51.{number}.1")
            found.append(self.ask("GET", f"/events/x{number}?wait=0", line, address).status)
        self.assertEqual(found[: int(rate.burst)], [200] * int(rate.burst))
        self.assertEqual(set(found[int(rate.burst) :]), {429})
        self.assertLessEqual(len(self.server.plumber.hub.accounts), rate.burst)
        self.assertEqual(self.server.plumber.intake.accepted, 0)

    def test_25_streams_of_one_subject(self) -> None:
        """Fifty, wherever they come from; whoever is refused is told so by a close code."""
        line = self.bearer(self.token())
        most = LimitSettings().streams_per_subject
        assert most is not None
        clients: list[MemoryClient] = []
        for number in range(most + 3):
            address = self.at(f"198.51.{number}.1")
            clients.append(self.handshake("user-42", line, address, f"Origin: http://{HOST}"))
        heads = [client.value().split(b" ", 2)[1] for client in clients]
        self.assertEqual(heads, [b"101"] * (most + 3))
        refused = [(4429).to_bytes(2, "big") in client.value()[-60:] for client in clients]
        self.assertEqual(refused, [False] * most + [True] * 3)

    def test_25_an_account_that_reads_backwards_in_a_log(self) -> None:
        """Its control characters are escaped in each line."""
        encoded = "%E2%80%AEgnp.exe%E2%81%A6"
        self.post(encoded, self.bearer("nonsense-token"))
        self.post(encoded, self.bearer(self.token()))
        named = self.bearer(self.token(sub="user-9", plumber={"subscribe": [BIDI]}))
        self.ask("GET", f"/events/{encoded}?wait=0", named)
        text = "\n".join(map(formatEvent, self.log))
        self.assertIn("refused", text)
        for character in BIDI.replace("gnp.exe", "") + "\r\x1b\u2028":
            self.assertNotIn(character, text)


class MountedLimitAttacks(LimitAttacks):
    """The same in a site of another application."""

    make_server = MountedServer


class ConnectionAttacks(AttackCase):
    """Row 25 at our own port, without a proxy."""

    def connect(self, address: str) -> MemoryClient:
        """Return a client of this address."""
        self.server.client_address = IPv4Address("TCP", address, 50000)
        return self.server.connect()

    def test_25_idle_connections_of_one_address(self) -> None:
        """Those beyond the limit are closed before they are read; others are served."""
        most = LimitSettings().connections_per_address
        assert most is not None
        clients = [self.connect(MALLORY) for _ in range(most + 50)]
        self.server.settle()
        ended = [client.ended is not None for client in clients]
        self.assertEqual(ended, [False] * most + [True] * 50)
        bob = self.connect(BOB)
        bob.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        self.assertTrue(bob.received().startswith(b"HTTP/1.1 200 "))
        clients[0].disconnect()
        self.assertIsNone(self.connect(MALLORY).ended)

    def test_25_a_byte_now_and_then(self) -> None:
        """The head has to be there in time, however slowly it grows."""
        client = self.connect(MALLORY)
        client.send(b"GET /events/user-42 HTTP/1.1\r\nHost: ")
        began = self.now
        while client.ended is None and not client.value() and self.now < began + 120:
            client.send(b"a")
            self.server.advance(5)
        self.assertTrue(client.value().startswith(b"HTTP/1.1 408 "))
        self.assertLess(self.now, began + 40)

    def test_25_lies_of_an_untrusted_peer(self) -> None:
        """What it says about its address does not count."""
        self.server = self.start_server(plumber={"client_policy": ClientPolicy(insecure=True)})
        self.server.client_address = IPv4Address("TCP", MALLORY, 50000)
        for number in range(30):
            lie = f"X-Forwarded-For: {BOB[:-1]}{number}"
            last = self.post("user-42", self.bearer(f"nonsense-{number:08}"), lie, "X-Real-IP: ::1")
        self.assertEqual(last.status, 429)

    def test_25_a_token_over_plain_http(self) -> None:
        """Everybody on the way could read it, so it is not taken, be it good or bad."""
        self.server.client_address = IPv4Address("TCP", MALLORY, 50000)
        for token in (self.token(), self.secret("nonsense-token")):
            self.assertEqual(self.post("user-42", self.bearer(token)).status, 403)
            self.assertEqual(self.statuses("user-42", self.bearer(token)), [403] * 3)
        lie = "X-Forwarded-Proto: https"
        self.assertEqual(self.post("user-42", self.bearer(self.token()), lie).status, 403)
        self.nothing_stored()
