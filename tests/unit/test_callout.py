"""The call-out: what the application is asked, what its responses mean, and how often."""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.auth.call_out import call_out
from asyncplumber.auth.call_out.answer import MAX_REFUSAL, CallOutRefused, CallOutUnauthenticated
from asyncplumber.auth.call_out.call_out import REFUSED_FOR, AskedGrant, CallOut
from asyncplumber.auth.call_out.table import CallOutTable
from asyncplumber.auth.fetch import BODY_LIMIT, FetchFailed, Reply
from asyncplumber.errors import NotAllowed, PlumberError, Unavailable
from asyncplumber.grant import Action, Grant
from asyncplumber.http.responses import error_response
from asyncplumber.interfaces import Facts
from tests.unit import IS_FAST

URL = "http://127.0.0.1:8000/plumber/auth"
NOW = 1_793_500_000.0
SECRET = b"a secret of the call-out"
CONTENT_JSON = {b"content-type": b"application/json"}


class Sent(NamedTuple):
    url: str
    headers: Mapping[bytes, bytes]
    timeout: float


class Application:
    """Answers each question as told; a Deferred is answered later."""

    def __init__(self) -> None:
        self.asked: list[Sent] = []
        self.answer: Any = Reply(204, {}, b"")
        self.respond: Callable[[Sent], Any] = lambda _: self.answer

    def allows(self, body: Any = None, **headers: str) -> None:
        named = {name.replace("_", "-").encode(): text.encode() for name, text in headers.items()}
        if body is None:
            self.answer = Reply(204, named, b"")
        else:
            self.answer = Reply(200, CONTENT_JSON | named, json.dumps(body).encode())

    def get(
        self, url: str, headers: Mapping[bytes, bytes], *, timeout: float, limit: int = BODY_LIMIT
    ) -> Deferred[Reply]:
        sent = Sent(url, headers, timeout)
        self.asked.append(sent)
        answer = self.respond(sent)
        if isinstance(answer, Deferred):
            return answer
        return fail(answer) if isinstance(answer, Exception) else succeed(answer)


def facts(
    account: str | None = "user-42",
    action: Action | None = Action.SUBSCRIBE,
    method: bytes = b"GET",
    target: bytes = b"/events/user-42?after=earliest",
    address: str = "192.0.2.1",
    **headers: str,
) -> Facts:
    named = {name.replace("_", "-").encode(): text.encode() for name, text in headers.items()}
    named.setdefault(b"sec-fetch-site", b"same-origin")
    return Facts(method, target, named, action, account, address)


class CallOutTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.application = Application()
        self.configure()

    def configure(self, **values: Any) -> None:
        table = CallOutTable(url=URL, **values)
        self.call_out = CallOut(
            table, self.application.get, self.clock, lambda: NOW + self.clock.seconds()
        )

    def ask(self, *args: Any, **values: Any) -> Grant:
        found = self.call_out.grant(facts(*args, **values))
        return self.successResultOf(found) if isinstance(found, Deferred) else found

    def refused(self, *args: Any, **values: Any) -> PlumberError:
        try:
            found = self.call_out.grant(facts(*args, **values))
        except PlumberError as error:
            return error
        assert isinstance(found, Deferred)
        error = self.failureResultOf(found).value
        assert isinstance(error, PlumberError)
        return error

    @property
    def sent(self) -> Mapping[bytes, bytes]:
        """The headers of the last question."""
        return self.application.asked[-1].headers


class QuestionTests(CallOutTestCase):
    """What the application gets."""

    def test_what_is_wanted_is_in_headers_of_ours(self) -> None:
        """A GET without the query, which may hold what does not belong in logs."""
        self.ask("a/b ü", target=b"/events/a%2Fb?ticket=x", cookie="session=1")
        id = self.sent[b"x-request-id"]
        self.assertEqual(len(id), 32)
        self.assertEqual(
            self.sent,
            {
                b"cookie": b"session=1",
                b"x-forwarded-for": b"192.0.2.1",
                b"x-original-method": b"GET",
                b"x-original-uri": b"/events/a%2Fb",
                b"x-plumber-account": b"a%2Fb%20%C3%BC",
                b"x-plumber-action": b"subscribe",
                b"x-request-id": id,
            },
        )
        self.assertEqual(self.application.asked[0][::2], (URL, 2))

    def test_only_the_headers_that_are_listed_go_along(self) -> None:
        """By their exact names: WSGI makes one name of ``X-A`` and ``X_A``."""
        self.configure(forward=("authorization", "user-agent"))
        headers = {"x-plumber-account": "root", "x_plumber_account": "root", "cookie": "a=b"}
        self.ask(authorization="Basic eA==", user_agent="curl", origin="https://a", **headers)
        self.assertEqual(self.sent[b"authorization"], b"Basic eA==")
        self.assertEqual(self.sent[b"user-agent"], b"curl")
        self.assertEqual(self.sent[b"x-plumber-account"], b"user-42")
        self.assertEqual({b"x_plumber_account", b"cookie", b"origin"} & self.sent.keys(), set())

    def test_what_a_client_says_in_our_headers_is_dropped(self) -> None:
        """CVE-2026-71485, CVE-2026-40575: only ours arrive, also where we say nothing."""
        lies = {
            "X_Original_URI": "/events/root",
            "X_Original_Method": "POST",
            "X_Plumber_Account": "root",
            "X_Plumber_Action": "publish",
            "X_Forwarded_For": "127.0.0.1",
            "X_Request_Id": "1",
            "X_Plumber_Signature": "v1,x",
        }
        small = {name.lower(): value for name, value in lies.items()}
        self.ask(None, None, target=b"/tickets", address="", **small)
        self.assertEqual(
            self.sent,
            {
                b"x-original-method": b"GET",
                b"x-original-uri": b"/tickets",
                b"x-request-id": self.sent[b"x-request-id"],
            },
        )
        self.assertNotEqual(self.sent[b"x-request-id"], b"1")

    def test_a_cookie_does_not_publish(self) -> None:
        """A browser attaches it to the requests of any page."""
        self.ask(
            action=Action.PUBLISH, method=b"POST", cookie="session=1", authorization="Bearer x"
        )
        self.assertNotIn(b"cookie", self.sent)
        self.assertEqual(self.sent[b"authorization"], b"Bearer x")
        self.assertEqual(self.sent[b"x-plumber-action"], b"publish")

    def test_a_cookie_counts_only_in_requests_of_our_pages(self) -> None:
        """As where the cookie has a token: with an Origin, which was checked, or same-origin."""
        error = self.refused(cookie="session=1", sec_fetch_site="none")
        self.assertIsInstance(error, NotAllowed)
        self.assertEqual(self.application.asked, [])
        self.ask(cookie="session=1", origin="https://www.example.com", sec_fetch_site="cross-site")
        self.ask(cookie="session=1", authorization="Bearer x", sec_fetch_site="none")
        self.ask(sec_fetch_site="none")
        self.assertEqual(len(self.application.asked), 3)

    def test_a_question_can_be_signed(self) -> None:
        """As the documentation says, so that the application knows that it is us."""
        self.configure(secret=SECRET)
        self.ask("a b", cookie="session=1")
        sent = {name.decode(): value.decode() for name, value in self.sent.items()}
        names = (
            "x-original-method",
            "x-original-uri",
            "x-plumber-account",
            "x-plumber-action",
            "x-forwarded-for",
        )
        content = "".join(sent.get(name, "") + "\n" for name in names)
        signed = f"{sent['x-request-id']}.{sent['x-plumber-timestamp']}.{content}".encode()
        digest = base64.b64encode(hmac.digest(SECRET, signed, "sha256")).decode()
        self.assertEqual(sent["x-plumber-signature"], f"v1,{digest}")
        self.assertEqual(sent["x-plumber-timestamp"], str(int(NOW)))

    def test_no_credential_is_in_a_repr(self) -> None:
        """It may be in a traceback."""
        self.configure(secret=SECRET)
        grant = self.ask(cookie="session=sesame")
        for value in (grant, self.call_out.table):
            self.assertNotIn("sesame", repr(value))
            self.assertNotIn(SECRET.decode(), repr(value))


class AnswerTests(CallOutTestCase):
    """What a response means."""

    def test_2xx_allows_what_was_asked(self) -> None:
        """One action with one account, and nothing else."""
        for status in (200, 202, 204):
            self.application.answer = Reply(status, {}, b"")
            grant = self.ask(address=f"192.0.2.{status}")
            self.assertTrue(grant.allows(Action.SUBSCRIBE, "user-42"))
            self.assertFalse(grant.allows(Action.PUBLISH, "user-42"))
            self.assertFalse(grant.allows(Action.SUBSCRIBE, "user-4"))
            self.assertEqual((grant.subject, grant.until), ("", None))
            self.assertEqual((grant.mechanism, grant.is_admin), ("call-out", False))

    def test_publishing_is_allowed_by_itself(self) -> None:
        """And not by an answer about subscribing."""
        self.ask()
        grant = self.ask(action=Action.PUBLISH, method=b"POST")
        self.assertEqual(len(self.application.asked), 2)
        self.assertTrue(grant.allows(Action.PUBLISH, "user-42"))
        self.assertFalse(grant.allows(Action.SUBSCRIBE, "user-42"))

    def test_a_request_without_account_is_allowed_nothing_by_itself(self) -> None:
        """The account is in its body: the application has to name it."""
        self.assertFalse(self.ask(None, Action.PUBLISH).publish)
        self.application.allows({"publish": ["user-42"]})
        grant = self.ask(None, Action.PUBLISH, address="192.0.2.2")
        self.assertTrue(grant.allows(Action.PUBLISH, "user-42"))

    def test_a_body_says_who_what_and_for_how_long(self) -> None:
        """In the form that tokens have; a list stands for all that is allowed."""
        self.application.allows(
            {"sub": "42", "subscribe": ["user-42", {"prefix": "team-7."}], "expires_in": 600}
        )
        grant = self.ask()
        self.assertEqual((grant.subject, grant.until, grant.issued), ("42", NOW + 600, NOW))
        self.assertTrue(grant.allows(Action.SUBSCRIBE, "team-7.x"))
        self.application.allows({"subscribe": []})
        self.assertFalse(self.ask(address="192.0.2.2").allows(Action.SUBSCRIBE, "user-42"))

    def test_a_body_that_is_no_json_says_nothing(self) -> None:
        """Existing endpoints send ``OK``, or JSON of their own."""
        for number, (kind, body) in enumerate(
            (
                (b"text/plain", b"OK"),
                (b"text/html; charset=utf-8", b"<p>Hello</p>"),
                (b"application/json", b'{"user": 7, "x": [1]}'),
                (b"application/json", b" \n"),
            )
        ):
            self.application.answer = Reply(200, {b"content-type": kind}, body)
            grant = self.ask(address=f"192.0.2.{number}")
            self.assertTrue(grant.allows(Action.SUBSCRIBE, "user-42"))

    def test_a_malformed_body_allows_nothing(self) -> None:
        """A limit in it would be overlooked."""
        for number, (kind, body) in enumerate(
            (
                (b"application/json", b'{"subscribe": "x"}'),
                (b"application/json", b'{"subscribe": [7]}'),
                (b"application/json", b'{"expires_in": "600"}'),
                (b"application/json", b'{"expires_in": true}'),
                (b"application/json", b'{"expires_in": 0}'),
                (b"application/json", b'{"expires_in": NaN}'),
                (b"application/json", b'{"expires_in": 1e400}'),
                (b"application/json", b'{"sub": ""}'),
                (b"application/json", b'{"sub": null}'),
                (b"application/json", b'{"sub": "a", "sub": "b"}'),
                (b"application/json", b'"OK"'),
                (b"application/json", b"OK"),
                (b"application/problem+json; charset=x", b"["),
                (b"text/plain", b'{"expires_in": '),
                (b"text/html", b' {"expires_in": -1}'),
                (b"application/json", b"\xff"),
                (b"application/json", b"[" * 5000),
            )
        ):
            self.application.answer = Reply(200, {b"content-type": kind}, body)
            self.assertIsInstance(self.refused(address=f"192.0.2.{number}"), Unavailable, body)
        self.application.answer = Reply(200, {}, b"OK")  # without a type it may be anything
        self.assertIsInstance(self.refused(address="192.0.2.99"), Unavailable)

    def test_401_and_403_are_passed_on(self) -> None:
        """With the challenge and the body, in which no script can run."""
        for status in (401, 403):
            headers = {b"www-authenticate": b'Basic realm="app"', b"content-type": b"text/html"}
            self.application.answer = Reply(status, headers, b"<p>Log in</p>")
            error = self.refused(address=f"192.0.2.{status - 400}")
            response = error_response(error)
            self.assertEqual((response.status, response.content_type), (status, b"text/html"))
            self.assertEqual(response.body, b"<p>Log in</p>")
            named = dict(response.headers)
            self.assertEqual(named[b"WWW-Authenticate"], b'Basic realm="app"')
            self.assertIn(b"sandbox", named[b"Content-Security-Policy"])

    def test_a_refusal_without_a_body_gets_ours(self) -> None:
        """And so does one whose body is too long; a 401 always has a challenge (RFC 9110)."""
        for number, body in enumerate((b"", b"x" * (MAX_REFUSAL + 1))):
            for status, kind in ((401, CallOutUnauthenticated), (403, CallOutRefused)):
                self.application.answer = Reply(status, {}, body)
                error = self.refused(f"user-{status}-{number}")
                self.assertIsInstance(error, kind)
                response = error_response(error)
                self.assertEqual(response.status, status)
                self.assertEqual(json.loads(response.body)["error"]["message"], error.message)
                challenge = dict(response.headers).get(b"WWW-Authenticate")
                self.assertEqual(challenge is not None, status == 401)
        self.application.answer = Reply(403, {}, b"x" * MAX_REFUSAL)
        self.assertEqual(len(error_response(self.refused("last")).body), MAX_REFUSAL)

    def test_everything_else_is_503(self) -> None:
        """Fail closed: nobody has allowed it."""
        for number, answer in enumerate(
            (
                Reply(302, {b"location": b"/login"}, b""),
                Reply(404, {}, b""),
                Reply(500, {}, b""),
                Reply(100, {}, b""),
                FetchFailed("timeout", "no whole response within 2 s"),
                FetchFailed("connection", "refused"),
                FetchFailed("too-large", "the response is too long"),
            )
        ):
            self.application.answer = answer
            error = self.refused(address=f"192.0.2.{number}")
            self.assertIsInstance(error, Unavailable, answer)
            response = error_response(error)
            self.assertEqual(response.status, 503)
            self.assertIn(b"Retry-After", dict(response.headers))

    def test_each_failure_is_counted(self) -> None:
        """By its kind; and each question is measured."""
        self.application.answer = FetchFailed("timeout", "slow")
        self.refused()
        self.application.answer = Reply(500, {}, b"")
        self.refused()
        figures = {metric.name: metric.figure() for metric in self.call_out.metrics}
        failures = figures["auth_callout_failures_total"]
        self.assertEqual((failures.of("timeout"), failures.of("status"), failures.value), (1, 1, 2))
        self.assertEqual(figures["auth_callout_seconds"].value, 2)
        self.assertEqual(figures["auth_callout_pending"].value, 0)

    def test_an_error_of_ours_is_503_as_well(self) -> None:
        """It is logged, and the next question is asked."""
        self.application.answer = ZeroDivisionError()
        self.assertIsInstance(self.refused(), Unavailable)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.application.allows()
        self.ask()


class OnceTests(CallOutTestCase):
    """How often the application is asked."""

    def test_equal_requests_at_once_are_one_question(self) -> None:
        """All get its answer."""
        answer: Deferred[Reply] = Deferred()
        self.application.answer = answer
        found = [self.call_out.grant(facts(cookie="s=1")) for _ in range(100)]
        self.assertEqual(len(self.application.asked), 1)
        answer.callback(Reply(204, {}, b""))
        grants = {id(self.successResultOf(each)) for each in found if isinstance(each, Deferred)}
        self.assertEqual(len(grants), 1)

    def test_each_difference_is_another_question(self) -> None:
        """Whatever the application is told is in the key of the memory."""
        self.configure(forward=("authorization", "cookie", "origin", "user-agent"))
        for values in (
            {},
            {"cookie": "s=1"},
            {"cookie": "s=2"},
            {"authorization": "s=2"},
            {"origin": "https://a"},
            {"user_agent": "curl"},
            {"account": "user-43"},
            {"method": b"HEAD"},
            {"target": b"/accounts/user-42"},
            {"address": "192.0.2.2"},
            {"action": Action.PUBLISH},
        ):
            self.ask(**values)
            self.ask(**values)
        self.assertEqual(len(self.application.asked), 11)

    def test_headers_do_not_run_into_each_other(self) -> None:
        """Two headers whose texts together are equal have two keys."""
        self.configure(forward=("cookie", "user-agent"))
        self.ask(cookie="a", user_agent="b")
        self.ask(cookie="ab", user_agent="")
        self.ask(cookie="a10:user-agent1:b")
        self.assertEqual(len(self.application.asked), 3)

    def test_the_query_makes_no_difference(self) -> None:
        """It is not sent: the cursor of a client that comes back asks nothing new."""
        self.ask(target=b"/events/user-42?after=x.1")
        self.ask(target=b"/events/user-42")
        self.assertEqual(len(self.application.asked), 1)

    def test_a_permission_is_remembered_for_a_while(self) -> None:
        """Ten seconds by default, and then it is asked for again."""
        self.ask()
        self.clock.advance(9.9)
        self.assertIsInstance(self.call_out.grant(facts()), AskedGrant)  # and no Deferred
        self.clock.advance(0.1)
        self.ask()
        self.assertEqual(len(self.application.asked), 2)

    def test_it_is_remembered_no_longer_than_the_application_says(self) -> None:
        """By Cache-Control, or because it ends."""
        for body, header, seconds in (
            (None, "max-age=3", 3),
            (None, "max-age=300", 10),
            ({"expires_in": 4}, "max-age=300", 4),
            ({"expires_in": 4}, "max-age=2", 2),
        ):
            self.application.allows(body, cache_control=header)
            self.call_out.configure(self.call_out.table)  # it forgets
            before = len(self.application.asked)
            self.ask()
            self.clock.advance(seconds - 0.1)
            self.ask()
            self.assertEqual(len(self.application.asked), before + 1, header)
            self.clock.advance(0.2)
            self.ask()
            self.assertEqual(len(self.application.asked), before + 2, header)

    def test_a_change_of_the_configuration_is_in_force_at_once(self) -> None:
        """Whoever asked before gets the old answer, and nobody else does."""
        before: Deferred[Reply] = Deferred()
        self.application.answer = before
        old = self.call_out.grant(facts())
        assert isinstance(old, Deferred)
        self.call_out.configure(CallOutTable(url="http://127.0.0.1:8001/another"))
        self.application.answer = Reply(403, {}, b"")
        self.assertEqual(self.refused().status, 403)
        before.callback(Reply(204, {}, b""))
        self.successResultOf(old)
        self.assertEqual(self.refused().status, 403)

    def test_the_application_can_forbid_to_remember(self) -> None:
        """And so can the configuration."""
        self.application.allows(cache_control="no-store")
        self.ask()
        self.ask()
        self.configure(cache=0)
        self.application.allows()
        self.ask()
        self.ask()
        self.assertEqual(len(self.application.asked), 4)

    def test_a_refusal_is_remembered_for_two_seconds(self) -> None:
        """Each time it is a new error, and not one whose traceback grows."""
        self.application.answer = Reply(403, {}, b"")
        errors = [self.refused() for _ in range(3)]
        self.assertEqual(len({id(error) for error in errors}), 3)
        self.assertEqual(len(self.application.asked), 1)
        self.clock.advance(REFUSED_FOR)
        self.refused()
        self.assertEqual(len(self.application.asked), 2)

    def test_a_failure_is_not_remembered(self) -> None:
        """The application may be back at once."""
        self.application.answer = Reply(500, {}, b"")
        self.refused()
        self.application.allows()
        self.ask()

    def test_the_memory_is_bounded(self) -> None:
        """The oldest answers are forgotten first."""
        size = 100 if IS_FAST else call_out.CACHE_SIZE
        self.patch(call_out, "CACHE_SIZE", size)
        for number in range(size + 10):
            self.ask(f"user-{number}")
        self.assertEqual(len(self.call_out._cache), size)
        self.ask("user-9")
        self.assertEqual(len(self.application.asked), size + 11)

    def test_a_client_that_leaves_does_not_end_the_question_of_others(self) -> None:
        """Nor does the last one: the answer is remembered for when it comes back."""
        answer: Deferred[Reply] = Deferred()
        self.application.answer = answer
        found = [self.call_out.grant(facts()) for _ in range(2)]
        for each in found:
            assert isinstance(each, Deferred)
            each.cancel()
            self.failureResultOf(each, CancelledError)
        answer.callback(Reply(204, {}, b""))
        self.ask()
        self.assertEqual(len(self.application.asked), 1)

    def test_questions_at_once_are_limited(self) -> None:
        """Others wait, in order, and those beyond are told to come again."""
        self.configure(calls=2, waiting=3)
        answers: list[Deferred[Reply]] = []

        def respond(_: Sent) -> Deferred[Reply]:
            answers.append(Deferred())
            return answers[-1]

        self.application.respond = respond
        found = [self.call_out.grant(facts(f"user-{number}")) for number in range(5)]
        self.assertEqual(len(answers), 2)
        self.assertEqual(self.call_out.metrics[2].figure().value, 5)
        error = self.assertRaises(Unavailable, self.call_out.grant, facts("user-5"))
        self.assertIsNotNone(error.retry_after)
        self.assertIsInstance(self.call_out.grant(facts("user-4")), Deferred)  # no new question
        answers[0].callback(Reply(204, {}, b""))
        self.assertEqual(len(answers), 3)
        self.assertEqual(self.sent[b"x-plumber-account"], b"user-2")
        for answer in answers[1:]:
            answer.callback(Reply(204, {}, b""))
        for answer in answers[3:]:
            answer.callback(Reply(204, {}, b""))
        for each in found:
            assert isinstance(each, Deferred)
            self.assertIn("user-", str(self.successResultOf(each)))

    def test_a_question_that_nobody_waits_for_is_not_asked(self) -> None:
        """Its client left while others were asked about."""
        self.configure(calls=1)
        answer: Deferred[Reply] = Deferred()
        self.application.answer = answer
        self.call_out.grant(facts("first"))
        waiting = self.call_out.grant(facts("second"))
        assert isinstance(waiting, Deferred)
        waiting.addErrback(lambda _: None).cancel()
        answer.callback(Reply(204, {}, b""))
        self.assertEqual(len(self.application.asked), 1)
        self.assertEqual(self.call_out.metrics[2].figure().value, 0)
