"""What a process knows of an account that it writes to, state by state."""

from __future__ import annotations

from bson import ObjectId
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.event import Cursor, Draft
from asyncplumber.stores.mongo.account_writer import (
    CALM,
    HEAD_LIFETIME,
    TRANSITIONS,
    AccountWriter,
    AccountWriters,
    Input,
    State,
)
from asyncplumber.stores.mongo.accounts import MongoAccount
from asyncplumber.stores.mongo.pending import DraftQueue, PendingDraft
from asyncplumber.stores.retention import Retention

LOOKED_UP_LIFETIME = 1000.0  # seconds


def drafts(*accounts: str) -> list[Draft]:
    """Drafts for these accounts."""
    return [
        Draft(
            account, f"{at}", f"{at}", "result", "2026-01-01T00:00:00Z", "text/plain", b'"data":1'
        )
        for at, account in enumerate(accounts)
    ]


def pending(*accounts: str) -> list[PendingDraft]:
    """The same, on their way."""
    queue = DraftQueue()
    queue.put(drafts(*accounts))
    return queue.take({})


class StateTests(SynchronousTestCase):
    """The table of transitions."""

    def test_each_state_can_be_left_and_reached(self) -> None:
        """None is a trap, and all are used."""
        self.assertEqual({before for before, _ in TRANSITIONS}, set(State))
        self.assertEqual({*TRANSITIONS.values()}, set(State))
        self.assertEqual({input for _, input in TRANSITIONS}, set(Input))

    def test_an_illegal_input_raises(self) -> None:
        """Nothing can be stored by an unknown head, nor a race be lost with it."""
        for illegal in (
            lambda writer: writer.stored(1, 0.0, 8),
            lambda writer: writer.race_lost(0.0),
            lambda writer: writer.doubted(),
        ):
            with self.assertRaises(KeyError):
                illegal(AccountWriter())

    def test_a_lost_race_makes_an_account_contended_for_a_while(self) -> None:
        """It is behind, catches up, and is calm again when no race was lost for a second."""
        writer = AccountWriter()
        seen = [writer.state]
        writer.loaded(MongoAccount("e", 3, 0), 10.0)
        seen.append(writer.state)
        writer.race_lost(10.0)
        seen.append(writer.state)
        writer.loaded(MongoAccount("e", 4, 0), 10.0)
        seen.append(writer.state)
        self.assertTrue(writer.is_contended(10.0))
        writer.stored(5, 10.0, 8)
        self.assertFalse(writer.is_contended(10.0 + CALM))
        seen.append(writer.state)
        self.assertEqual(
            seen, [State.UNKNOWN, State.KNOWN, State.BEHIND, State.CONTENDED, State.KNOWN]
        )


class AccountWritersTests(SynchronousTestCase):
    """All accounts of a process."""

    def setUp(self) -> None:
        self.writers = AccountWriters(Retention(), LOOKED_UP_LIFETIME, lambda low, high: high)
        self.assertEqual(self.writers.untrusted(["a"], 0.0), ["a"])
        self.writers.loaded("a", MongoAccount("e", 3, 0, total=100), 0.0)

    def test_events_are_numbered_after_the_head(self) -> None:
        """In their order, and a second time with the same numbers until they are stored."""
        for _ in range(2):
            events, totals = self.writers.numbered(pending("a", "a"))
            self.assertEqual([event.seq for event in events], [4, 5])
            self.assertEqual(totals, [100 + 8, 100 + 16])
        self.writers.stored({"a": Cursor("e", 5)}, {"a": 116}, 1.0, 1.0)
        ((event,), totals) = self.writers.numbered(pending("a"))
        self.assertEqual((event.seq, totals), (6, [124]))

    def test_a_head_is_trusted_for_a_limited_time(self) -> None:
        """Each insert that goes in proves it again; but it is looked up from time to time."""
        self.assertEqual(self.writers.untrusted(["a"], HEAD_LIFETIME), [])
        self.writers.stored({"a": Cursor("e", 4)}, {"a": 9}, HEAD_LIFETIME, HEAD_LIFETIME)
        self.assertEqual(self.writers.untrusted(["a"], 2 * HEAD_LIFETIME), [])
        self.assertEqual(self.writers.untrusted(["a"], 2 * HEAD_LIFETIME + 1), ["a"])
        self.writers.stored({"a": Cursor("e", 5)}, {"a": 9}, LOOKED_UP_LIFETIME, LOOKED_UP_LIFETIME)
        self.assertEqual(self.writers.untrusted(["a"], LOOKED_UP_LIFETIME), [])
        self.assertEqual(self.writers.untrusted(["a"], LOOKED_UP_LIFETIME + 1), ["a"])

    def test_the_winner_of_a_contended_account_yields(self) -> None:
        """For a moment, and its drafts of other accounts do not wait meanwhile."""
        self.writers.race_lost("a", 1.0)
        self.writers.untrusted(["a"], 1.0)
        self.writers.loaded("a", MongoAccount("e", 4, 0), 1.0)
        self.writers.stored({"a": Cursor("e", 5)}, {"a": 9}, 1.0, 1.0)
        yielding = self.writers.yielding(1.0)
        self.assertEqual(list(yielding), ["a"])
        queue = DraftQueue()
        queue.put(drafts("a", "b", "a"))
        self.assertEqual([each.draft.account for each in queue.take(yielding)], ["b"])
        self.assertEqual(self.writers.yielding(yielding["a"]), {})
        self.assertEqual([each.draft.id for each in queue.take({})], ["0", "2"])

    def test_a_raised_floor_is_not_above_the_head(self) -> None:
        """What another process deleted has existed; another numbering does not matter."""
        self.writers.floor_raised("a", "other", 9)
        self.writers.floor_raised("a", "e", 2)
        self.assertEqual(self.writers.cached("a"), MongoAccount("e", 3, 2, total=100))
        self.writers.floor_raised("a", "e", 7)
        self.assertEqual(self.writers.cached("a"), MongoAccount("e", 7, 7, total=100))

    def test_each_document_has_an_id_of_its_own(self) -> None:
        """By it, an earlier attempt is told from somebody else's event."""
        ids = {each.id for each in pending("a", "a", "b")}
        self.assertEqual(len(ids), 3)
        self.assertTrue(all(isinstance(id, ObjectId) for id in ids))
