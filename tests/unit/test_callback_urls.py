"""URLs whose last segment is the credential: tokens, digests, and when they end."""

from __future__ import annotations

from urllib.parse import urlsplit

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.core.tasks.callback_urls import AFTER_END, CallbackMint, digest_of
from asyncplumber.interfaces import CallbackUrl, Dispatch
from asyncplumber.stores.memory_tasks import MemoryCallbackUrls
from asyncplumber.task import Task, TaskState

TASK = Task("42", "sum", "r1", TaskState.SUBMITTED, 1.0, 1.0)


class MintTests(SynchronousTestCase):
    """URLs for those who execute a run."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000.0)
        self.urls = MemoryCallbackUrls(self.clock)
        self.mint = CallbackMint(self.urls, self.clock.seconds, lambda: "https://push.example/p")

    def token(self) -> str:
        """Return the token of a new URL."""
        return self.successResultOf(self.mint.mint(TASK)).rpartition("/")[2]

    def test_a_url_is_bound_to_its_run(self) -> None:
        url = self.successResultOf(self.mint.mint(TASK))
        path, _, token = urlsplit(url).path.rpartition("/")
        self.assertEqual((path, len(token)), ("/p/callbacks", 22))
        row = self.successResultOf(self.mint.find(token))
        assert row is not None
        self.assertEqual((row.account, row.task, row.run, row.ends), ("42", "sum", "r1", True))

    def test_the_store_has_only_a_digest(self) -> None:
        token = self.token()
        row = self.successResultOf(self.mint.find(token))
        assert row is not None
        self.assertEqual(row.digest, digest_of(token))
        self.assertNotIn(token, repr(row))

    def test_no_two_are_alike(self) -> None:
        self.assertEqual(len({self.token() for _ in range(100)}), 100)

    def test_any_other_text_is_no_token(self) -> None:
        for text in ("", "x", "x" * 22, "ü", "\ud800", "a/b"):
            self.assertIsNone(self.successResultOf(self.mint.find(text)), ascii(text))

    def test_it_ends_a_day_after_its_run(self) -> None:
        token = self.token()
        ended = Task("42", "sum", "r1", TaskState.COMPLETED, 1.0, 1.0, ended_at=1200.0)
        for _ in range(2):
            self.successResultOf(self.mint.ended(ended))
        row = self.successResultOf(self.mint.find(token))
        assert row is not None
        self.assertEqual(row.expires_at, 1200.0 + AFTER_END)

    def test_the_end_of_another_run_changes_nothing(self) -> None:
        token = self.token()
        before = self.successResultOf(self.mint.find(token))
        other = Task("42", "sum", "r2", TaskState.COMPLETED, 1.0, 1.0, ended_at=1200.0)
        self.successResultOf(self.mint.ended(other))
        self.assertEqual(self.successResultOf(self.mint.find(token)), before)

    def test_no_repr_has_a_secret(self) -> None:
        minted = self.successResultOf(
            self.mint.add(
                lambda digest, id: CallbackUrl(digest, "42", 2000.0, id=id, secret="do not tell")
            )
        )
        shown = f"{minted!r} {minted.row!r} {Dispatch('42', 'sum', 'r', '', b'', minted.url)!r}"
        self.assertNotIn(minted.token, shown)
        self.assertNotIn("do not tell", shown)
