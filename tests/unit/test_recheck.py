"""Open streams that the application allowed: asked about again, and ended when it refuses."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.auth.call_out.call_out import AskedGrant, CallOut
from asyncplumber.auth.call_out.recheck import AT_ONCE, Recheck
from asyncplumber.auth.call_out.table import CallOutTable
from asyncplumber.auth.fetch import FetchFailed, Reply
from asyncplumber.errors import PlumberError
from asyncplumber.grant import OPEN, Action, Grant
from asyncplumber.interfaces import Facts

URL = "http://127.0.0.1:8000/plumber/auth"
NOW = 1_793_500_000.0
ALLOWED = Reply(204, {}, b"")


class RecheckTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.answer: Any = ALLOWED
        self.asked: list[bytes] = []
        self.later: list[Deferred[Reply]] = []  # the answers, where ``answer`` is None
        self.draws: Callable[[], float] = lambda: 0.5
        self.streams: dict[str, Grant] = {}
        self.ended: dict[str, PlumberError] = {}
        self.table = CallOutTable(url=URL, recheck=60, grace=300)
        self.call_out = CallOut(self.table, self.get, self.clock, self.now)
        self.recheck = Recheck(self.call_out, self.clock, self.now, lambda: self.draws())
        self.recheck.end = self.end
        self.recheck.start()
        self.addCleanup(self.recheck.stop)

    def now(self) -> float:
        return NOW + self.clock.seconds()

    def get(self, url: str, headers: Mapping[bytes, bytes], **_: Any) -> Deferred[Reply]:
        self.asked.append(headers[b"x-plumber-account"])
        if self.answer is None:
            self.later.append(Deferred())
            return self.later[-1]
        return fail(self.answer) if isinstance(self.answer, Exception) else succeed(self.answer)

    def end(self, matches: Callable[[Grant, str], bool], error: PlumberError) -> int:
        gone = [account for account, grant in self.streams.items() if matches(grant, account)]
        for account in gone:
            del self.streams[account]
            self.ended[account] = error
        return len(gone)

    def open(self, account: str = "a") -> Grant:
        facts = Facts(b"GET", b"/events/x", {}, Action.SUBSCRIBE, account)
        found = self.call_out.grant(facts)
        grant = self.successResultOf(found) if isinstance(found, Deferred) else found
        self.streams[account] = grant
        return grant

    def pass_by(self, seconds: int) -> None:
        for _ in range(seconds):
            self.clock.advance(1)

    def test_a_stream_is_asked_about_once_in_a_round(self) -> None:
        """At a time of its own, which is the same in each round."""
        self.pass_by(7)
        self.open()
        asked = []
        for second in range(180):
            before = len(self.asked)
            self.clock.advance(1)
            asked += [second] * (len(self.asked) - before)
        self.assertEqual(len(asked), 3)
        self.assertEqual((asked[1] - asked[0], asked[2] - asked[1]), (60, 60))

    def test_the_first_time_is_one_round_away_at_most(self) -> None:
        """Whatever is drawn, and whenever the stream began."""
        for number, drawn in enumerate((0.0, 0.5, 0.999999)):
            self.draws = lambda drawn=drawn: drawn
            self.pass_by(11)
            self.open(str(number))
            before = self.asked.count(b"%d" % number)
            self.pass_by(60)
            self.assertEqual(self.asked.count(b"%d" % number) - before, 1, drawn)

    def test_what_is_refused_ends(self) -> None:
        """401 as a credential that is bad, 403 as one that does not suffice."""
        for status in (401, 403):
            self.answer = ALLOWED
            self.open(str(status))
            self.answer = Reply(status, {}, b"")
            self.pass_by(60)
            self.assertEqual(self.ended[str(status)].status, status)
        self.assertEqual(len(self.recheck), 0)

    def test_a_list_without_the_account_ends_it(self) -> None:
        """The application allows something else now."""
        self.open()
        self.answer = Reply(200, {}, b'{"subscribe": ["b"]}')
        self.pass_by(60)
        self.assertEqual(self.ended["a"].status, 403)

    def test_other_streams_stay(self) -> None:
        """Of the same account, by another way to authenticate; and of other clients."""
        self.open("a")
        self.streams["b"] = OPEN
        self.answer = Reply(403, {}, b"")
        self.pass_by(60)
        self.assertEqual((list(self.ended), list(self.streams)), (["a"], ["b"]))

    def test_streams_stay_while_the_application_cannot_be_asked(self) -> None:
        """For the time of grace, which begins at the first question without answer."""
        self.open()
        self.answer = FetchFailed("connection", "refused")
        self.pass_by(30)  # the first question comes after 31 s
        self.pass_by(300)
        self.assertEqual(self.ended, {})
        self.pass_by(1)
        self.assertEqual(self.ended["a"].status, 503)

    def test_an_answer_ends_the_time_of_grace(self) -> None:
        """The next outage has all of it again."""
        self.open()
        for _ in range(3):
            self.answer = Reply(500, {}, b"")
            self.pass_by(240)
            self.answer = ALLOWED
            self.pass_by(60)
        self.assertEqual(self.ended, {})

    def test_an_end_is_hard(self) -> None:
        """No later answer moves it, but one can bring it nearer."""
        self.answer = Reply(200, {}, b'{"expires_in": 100}')
        self.open("first")
        self.answer = Reply(200, {}, b'{"expires_in": 1000}')
        self.pass_by(99)
        self.assertEqual(self.ended, {})
        self.pass_by(1)
        self.assertEqual(self.ended["first"].code, "expired")
        self.answer = ALLOWED
        self.open("second")
        self.answer = Reply(200, {}, b'{"expires_in": 20}')
        self.pass_by(51)  # it is asked after 31 s
        self.assertEqual(self.ended["second"].code, "expired")

    def test_a_stream_that_has_ended_is_not_asked_about(self) -> None:
        """Nobody has to say so; what is remembered of it is forgotten after a while."""
        gc.freeze()  # what other tests have left need not be looked at
        self.addCleanup(gc.unfreeze)
        self.open()
        self.pass_by(120)
        del self.streams["a"]
        gc.collect()
        self.pass_by(20)
        gc.collect()
        self.assertEqual(len(self.recheck), 0)
        before = len(self.asked)
        self.pass_by(120)
        self.assertEqual(len(self.asked), before)

    def test_streams_with_the_same_credential_are_one_question(self) -> None:
        """Tabs of one user, opened while the answer is remembered."""
        first, second = self.open(), self.open()
        assert isinstance(first, AskedGrant)
        assert isinstance(second, AskedGrant)
        self.assertIs(first.asked, second.asked)
        self.pass_by(60)
        self.assertEqual(len(self.asked), 2)

    def test_a_round_does_not_make_more_questions(self) -> None:
        """What an answer makes is the permission that is known already."""
        self.draws = iter([number / 10 % 1 for number in range(100)]).__next__
        grant = self.open()
        self.pass_by(600)
        self.assertEqual(len(self.asked), 11)
        self.assertEqual(len(self.recheck), 1)
        self.assertIsInstance(grant, AskedGrant)

    def test_few_are_asked_at_once(self) -> None:
        """Those beyond wait; a slow application does not get the same question twice."""
        for number in range(AT_ONCE + 8):
            self.open(str(number))
        self.asked.clear()
        self.answer = None
        self.pass_by(120)
        self.assertEqual(len(self.asked), AT_ONCE)
        self.answer = ALLOWED
        for each in self.later:
            each.callback(ALLOWED)
        self.assertEqual(len(set(self.asked)), AT_ONCE + 8)

    def test_a_publisher_is_not_asked_about(self) -> None:
        """A POST is over at once."""
        facts = Facts(b"POST", b"/hooks/a", {}, Action.PUBLISH, "a")
        found = self.call_out.grant(facts)
        assert isinstance(found, Deferred)
        grant = self.successResultOf(found)
        assert isinstance(grant, AskedGrant)
        self.assertIsNone(grant.asked)
        self.assertEqual(len(self.recheck), 0)

    def test_another_configuration_takes_over_the_streams(self) -> None:
        """They are asked about in its rounds."""
        self.open()
        self.call_out.configure(CallOutTable(url=URL, recheck=5))
        self.recheck.configure(self.call_out)
        self.pass_by(5)
        self.assertEqual(len(self.asked), 2)

    def test_without_a_call_out_its_streams_end(self) -> None:
        """It was taken out of the configuration: nobody can say that they may stay."""
        self.open()
        self.recheck.configure(None)
        self.pass_by(1)
        self.assertEqual(self.ended["a"].status, 401)

    def test_a_question_without_end_is_collected_in_silence(self) -> None:
        """Nothing is resumed by the collector, which may come at any time."""
        for number in range(AT_ONCE + 1):
            self.open(str(number))
        self.answer = None
        self.pass_by(60)
        before = len(self.asked)
        self.recheck.stop()
        self.later.clear()
        self.call_out = self.recheck = None  # type: ignore[assignment]
        self.streams.clear()
        gc.collect()
        self.assertEqual(len(self.asked), before)

    def test_an_error_of_ours_ends_nothing(self) -> None:
        """It is logged, and the stream is asked about in the next round."""
        self.open()
        self.answer = ZeroDivisionError()
        self.pass_by(60)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(self.ended, {})
        self.answer = Reply(403, {}, b"")
        self.pass_by(60)
        self.assertIn("a", self.ended)
