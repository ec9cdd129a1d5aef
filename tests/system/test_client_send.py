"""The synchronous sender, against a real HTTP server that responds as a script says."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
import threading
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

from twisted.trial.unittest import SynchronousTestCase

from asyncplumber import client
from asyncplumber.client import Receipt, Refused, RetryPolicy, Sender, Undelivered
from asyncplumber.sending import encode
from harness.processes import ROOT
from harness.receiver import Receiver, Step, close, receive, respond, stall


class Time:
    """A clock that moves when a sender sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.naps: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.now += seconds


class SenderTestCase(SynchronousTestCase):
    def receiver(self, *script: Step, tls: ssl.SSLContext | None = None) -> Receiver:
        receiver = Receiver(*script, tls=tls)
        self.addCleanup(receiver.stop)
        return receiver

    def sender(self, url: str, retry_policy: RetryPolicy = RetryPolicy(), **options: Any) -> Sender:
        self.time = Time()
        sender = Sender(
            url,
            retry_policy=retry_policy,
            clock=lambda: self.time.now,
            sleep=self.time.sleep,
            random=lambda: 0.5,
            **options,  # type: ignore[arg-type]
        )
        self.addCleanup(sender.close)
        return sender


class SendingTests(SenderTestCase):
    """What goes out."""

    def test_post(self) -> None:
        """A send is a POST to the webhook of the account, and returns the receipt."""
        receiver = self.receiver()
        receipt = self.sender(receiver.url + "/").send(
            "42", {"total": 7}, id="t-1", type="progress"
        )
        [request] = receiver.received
        self.assertEqual(request.path, "/hooks/42")
        self.assertEqual(request.body, b'{"total":7}')
        self.assertEqual(request.headers["content-type"], "application/json")
        self.assertEqual((request.id, request.headers["event-type"]), ("t-1", "progress"))
        self.assertEqual(receipt, Receipt("t-1", "e.1", False, 2, {"ok": 1, "failed": 0}))

    def test_new_id(self) -> None:
        """Without an id each send is an event of its own."""
        receiver = self.receiver()
        sender = self.sender(receiver.url)
        self.assertNotEqual(sender.send("42", 1).id, sender.send("42", 1).id)

    def test_kinds_of_data(self) -> None:
        """Text is sent as text, bytes as they are, and all else as JSON."""
        self.assertEqual(encode("é"), ("text/plain; charset=utf-8", "é".encode()))
        self.assertEqual(encode(b"\x00"), ("application/octet-stream", b"\x00"))
        self.assertEqual(encode([1, None]), ("application/json", b"[1,null]"))

    def test_keys_of_a_database(self) -> None:
        """An account or an id may be the number or the UUID that a database has as key."""
        receiver = self.receiver()
        key = UUID("12345678-1234-5678-1234-567812345678")
        self.sender(receiver.url).send(42, 1, id=key)
        self.sender(receiver.url).send(key, 1, id=7)
        told = [(request.path, request.id) for request in receiver.received]
        self.assertEqual(told, [("/hooks/42", str(key)), (f"/hooks/{key}", "7")])

    def test_an_argument_of_another_type_is_named(self) -> None:
        """A value of the wrong type is a TypeError that names the argument."""
        sender = self.sender("http://127.0.0.1:1")
        wrong: list[tuple[str, Any]] = [
            ("account", None),
            ("account", True),
            ("account", b"42"),
            ("id", 1.5),
            ("type", None),
            ("type", 1),
        ]
        wrong += [("content_type", 1), ("time", 0), ("time", date(2012, 9, 28))]  # type: ignore[list-item]
        for name, value in wrong:
            error = self.assertRaises(
                TypeError, sender.send, **{"account": "42", "data": 1, name: value}
            )
            self.assertTrue(str(error).startswith(f"{name} is "), error)

    def test_content_type(self) -> None:
        """A content type that is given replaces the one that was guessed."""
        receiver = self.receiver()
        self.sender(receiver.url).send("42", b"<a/>", content_type="application/xml")
        self.assertEqual(receiver.received[0].headers["content-type"], "application/xml")

    def test_account_in_path(self) -> None:
        """An account is one segment of the path, whatever characters it has."""
        receiver = self.receiver()
        self.sender(receiver.url + "/plumber").send("a/b?ü%2F", 1)
        self.assertEqual(receiver.received[0].path, "/plumber/hooks/a%2Fb%3F%C3%BC%252F")

    def test_time(self) -> None:
        """A time travels as a CloudEvent's, in UTC."""
        receiver = self.receiver()
        noon = datetime(2012, 9, 28, 12, tzinfo=timezone(timedelta(hours=1)))
        self.sender(receiver.url).send("42", 1, id="50%", time=noon)
        headers = receiver.received[0].headers
        self.assertEqual((headers["ce-time"], headers["ce-id"]), ("2012-09-28T11:00:00Z", "50%25"))
        self.assertEqual((headers["ce-specversion"], headers["ce-type"]), ("1.0", "result"))

    def test_unsendable(self) -> None:
        """It is refused before anything is sent."""
        receiver = self.receiver()
        sender = self.sender(receiver.url)
        unsendable: list[tuple[str, Any, dict[str, Any]]] = [
            ("", 1, {}),
            ("\ud800", 1, {}),
            ("42", float("nan"), {}),
            ("42", 1, {"id": "a\r\nX: y"}),
            ("42", 1, {"id": ""}),
            ("42", 1, {"type": "ü"}),
            ("42", 1, {"time": datetime(2012, 9, 28)}),
        ]
        for account, data, options in unsendable:
            with self.assertRaises(ValueError):
                sender.send(account, data, **options)  # type: ignore[arg-type]
        with self.assertRaises(TypeError):
            sender.send("42", object())
        self.assertEqual(receiver.received, [])

    def test_token(self) -> None:
        """A token is sent as a bearer token, beside other headers."""
        receiver = self.receiver()
        self.sender(receiver.url, token="s3cret", headers={"X-Team": "blue"}).send("42", 1)
        headers = receiver.received[0].headers
        self.assertEqual((headers["authorization"], headers["x-team"]), ("Bearer s3cret", "blue"))

    def test_the_token_is_secret(self) -> None:
        """No error message has the token in it."""
        receiver = self.receiver(respond(403), respond(500))
        sender = self.sender(receiver.url, RetryPolicy(attempts=1), token="s3cret")
        for failure in (Refused, Undelivered):
            error = self.assertRaises(failure, sender.send, "42", 1)
            self.assertNotIn("s3cret", f"{error} {error!r} {sender!r}")
        for bad in ({"token": "s3cret\r\nX: y"}, {"headers": {"X-Key": "s3cret\n"}}):
            error = self.assertRaises(ValueError, Sender, receiver.url, **bad)
            self.assertNotIn("s3cret", str(error))

    def test_environment(self) -> None:
        """`send` goes where the environment says."""
        receiver = self.receiver()
        self.patch(
            os,
            "environ",
            {**os.environ, "ASYNCPLUMBER_URL": receiver.url, "ASYNCPLUMBER_TOKEN": "t"},
        )
        self.assertEqual(client.send("42", 1, id="t-1").id, "t-1")
        self.assertEqual(receiver.received[0].headers["authorization"], "Bearer t")

    def test_needs_only_python(self) -> None:
        """A synchronous program that sends does not load Twisted or Celery."""
        code = (
            "import sys, asyncplumber.client; "
            "print({'twisted', 'celery', 'treq', 'zope', 'msgspec'} & set(sys.modules))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        )
        self.assertEqual(done.stdout, "set()\n")


class RetryTests(SenderTestCase):
    """Attempts that fail."""

    def test_again_after_503(self) -> None:
        """An attempt that failed for now is repeated after a pause, as the same event."""
        receiver = self.receiver(respond(503))
        self.sender(receiver.url).send("42", 1)
        first, second = receiver.received
        self.assertEqual(first.id, second.id)
        self.assertEqual(self.time.naps, [0.125])

    def test_transient(self) -> None:
        """408, 429 and every 5xx are worth another attempt."""
        receiver = self.receiver(*[respond(status) for status in (408, 429, 500, 502, 504, 507)])
        self.sender(receiver.url).send("42", 1)
        self.assertEqual(len(receiver.received), 7)

    def test_closed_without_a_response(self) -> None:
        """A new connection that is closed without a response is a failed attempt."""
        receiver = self.receiver(close)
        self.sender(receiver.url).send("42", 1)
        self.assertEqual((len(receiver.received), len(self.time.naps)), (2, 1))

    def test_no_response(self) -> None:
        """An attempt without a response fails after the timeout."""
        receiver = self.receiver(stall)
        self.sender(receiver.url, RetryPolicy(timeout=0.05)).send("42", 1)
        self.assertEqual((len(receiver.received), len(self.time.naps)), (2, 1))

    def test_a_closed_port(self) -> None:
        """A closed port is tried until the deadline; the error says so."""
        receiver = Receiver()
        receiver.stop()
        sender = self.sender(receiver.url, RetryPolicy(deadline=2.0, initial_backoff=1.0))
        error = self.assertRaises(Undelivered, sender.send, "42", 1, id="t-1")
        self.assertEqual((self.time.naps, error.attempts), ([0.5, 1.0], 3))
        self.assertIn(
            "event t-1 is undelivered after 3 attempts: ConnectionRefusedError", str(error)
        )

    def test_attempts(self) -> None:
        """The number of attempts can be bounded; the error has the last reason."""
        receiver = self.receiver(
            *[respond(503, {"error": {"code": "unavailable", "message": "no store"}})] * 2
        )
        error = self.assertRaises(
            Undelivered, self.sender(receiver.url, RetryPolicy(attempts=2)).send, "42", 1
        )
        self.assertEqual((error.attempts, error.reason), (2, "503 (unavailable): no store"))

    def test_refused(self) -> None:
        """A refused event is not sent again; the error says what the plumber said."""
        receiver = self.receiver(
            respond(413, {"error": {"code": "too-large", "message": "at most 1 MiB"}})
        )
        error = self.assertRaises(Refused, self.sender(receiver.url).send, "42", 1)
        self.assertEqual(
            (error.status, error.code, error.message), (413, "too-large", "at most 1 MiB")
        )
        self.assertEqual(len(receiver.received), 1)

    def test_refused_by_somebody_else(self) -> None:
        """RFC 9457 problem details, and responses without a body, are understood."""
        receiver = self.receiver(
            respond(403, {"type": "about:blank", "title": "Forbidden"}), respond(404)
        )
        sender = self.sender(receiver.url)
        self.assertEqual(self.assertRaises(Refused, sender.send, "42", 1).message, "Forbidden")
        self.assertEqual(self.assertRaises(Refused, sender.send, "42", 1).status, 404)

    def test_redirect(self) -> None:
        """It is not followed: an event goes where its sender said, or nowhere."""
        other = self.receiver()
        receiver = self.receiver(respond(307, Location=other.url + "/hooks/42"))
        self.assertEqual(
            self.assertRaises(Refused, self.sender(receiver.url).send, "42", 1).code, "redirect"
        )
        self.assertEqual(other.received, [])

    def test_no_receipt(self) -> None:
        """A success without a receipt is not a plumber's: the event was not kept."""
        receiver = self.receiver(respond(200, {"status": "ok"}), respond(200, [1]), respond(204))
        sender = self.sender(receiver.url)
        for _ in range(3):
            self.assertEqual(self.assertRaises(Refused, sender.send, "42", 1).code, "no-receipt")


class ConnectionTests(SenderTestCase):
    """Which connections are used."""

    def test_reuse(self) -> None:
        """One send after the other goes over the same connection."""
        receiver = self.receiver()
        sender = self.sender(receiver.url)
        for number in range(3):
            sender.send("42", number)
        self.assertEqual(len({request.client for request in receiver.received}), 1)

    def test_stale(self) -> None:
        """An idle connection that the server closed costs no pause and no attempt."""
        receipt = {
            "id": "t",
            "cursor": "e.1",
            "duplicate": False,
            "subscribers": 0,
            "instances": {},
        }
        receiver = self.receiver(respond(202, receipt, hang_up=True))
        sender = self.sender(receiver.url, RetryPolicy(attempts=1))
        sender.send("42", 1)
        sender.send("42", 2)
        self.assertEqual([request.body for request in receiver.received], [b"1", b"2"])
        self.assertEqual(self.time.naps, [])

    def test_after_a_timeout(self) -> None:
        """A connection whose response is still due is not used again."""
        receiver = self.receiver(receive, stall)
        sender = self.sender(receiver.url, RetryPolicy(timeout=0.05))
        sender.send("42", 1)
        self.assertEqual(sender.send("42", 2, id="second").id, "second")
        clients = [request.client for request in receiver.received]
        self.assertEqual(clients[0], clients[1])
        self.assertNotEqual(clients[1], clients[2])

    def test_threads(self) -> None:
        """Threads may share a sender: each gets the receipt of its own event."""
        receiver = self.receiver()
        sender = self.sender(receiver.url)
        wrong: list[str] = []

        def work(name: str) -> None:
            for number in range(20):
                id = f"{name}-{number}"
                if sender.send("42", id, id=id).id != id:
                    wrong.append(id)

        threads = [threading.Thread(target=work, args=(str(number),)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(wrong, [])
        self.assertEqual(len({request.id for request in receiver.received}), 120)

    def test_fork(self) -> None:
        """After a fork the child opens its own connection, and leaves the parent's alone."""
        receiver = self.receiver()
        code = (
            "import os, sys; from asyncplumber.client import Sender; sender = Sender(sys.argv[1])\n"
            "sender.send('42', 1)\n"
            "if not (child := os.fork()): sender.send('42', 2); os._exit(0)\n"
            "os.waitpid(child, 0); sender.send('42', 3)\n"
        )
        subprocess.run([sys.executable, "-c", code, receiver.url], cwd=ROOT, check=True)
        clients = {request.body: request.client for request in receiver.received}
        self.assertEqual(clients[b"1"], clients[b"3"])
        self.assertNotEqual(clients[b"1"], clients[b"2"])


def certificate(folder: str) -> str:
    """Return the path of a self-signed certificate for 127.0.0.1, with its key."""
    from ipaddress import ip_address

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "plumber")])
    now = datetime.now(UTC)
    alternative = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    built = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    )
    built = (
        built.serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
    )
    signed = built.add_extension(alternative, critical=False).sign(key, hashes.SHA256())
    path = os.path.join(folder, "plumber.pem")
    with open(path, "wb") as file:
        file.write(signed.public_bytes(serialization.Encoding.PEM))
        file.write(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
    return path


class TLSTests(SenderTestCase):
    """Over TLS."""

    def setUp(self) -> None:
        folder = self.mktemp()
        os.makedirs(folder)
        self.path = certificate(folder)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(self.path)

    def test_unknown_authority(self) -> None:
        """Nothing is sent to a server that cannot prove its name, and there is one attempt."""
        receiver = self.receiver(tls=self.context)
        error = self.assertRaises(Undelivered, self.sender(receiver.url).send, "42", 1)
        self.assertIn("certificate verify failed", error.reason)
        self.assertEqual((error.attempts, receiver.received), (1, []))

    def test_private_authority(self) -> None:
        """A context with the authority accepts the server."""
        receiver = self.receiver(tls=self.context)
        sender = self.sender(receiver.url, tls=ssl.create_default_context(cafile=self.path))
        self.assertEqual(sender.send("42", 1, id="t-1").id, "t-1")
