"""What a credential allows."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.errors import InsufficientScope
from asyncplumber.grant import ALL_ACCOUNTS, MAX_ENTRIES, NO_ACCOUNTS, OPEN, Accounts, Action, Grant


class AccountsTests(SynchronousTestCase):
    """Sets of accounts, as tokens and files list them."""

    def test_a_string_is_exactly_one_account(self) -> None:
        """Also if it looks like a pattern: a user may be called so."""
        accounts = Accounts.parse(["user-42", "*", "team-.*", "all"])
        for name in ("user-42", "*", "team-.*", "all"):
            self.assertIn(name, accounts)
        for name in ("user-4", "user-421", "USER-42", "team-1", "anything"):
            self.assertNotIn(name, accounts)

    def test_a_prefix_is_a_pattern(self) -> None:
        """It stands for the accounts that begin so, itself included."""
        accounts = Accounts.parse([{"prefix": "team-7."}])
        self.assertIn("team-7.a", accounts)
        self.assertIn("team-7.", accounts)
        self.assertNotIn("team-7", accounts)
        self.assertNotIn("a.team-7.", accounts)

    def test_all_is_a_pattern(self) -> None:
        """It stands for every account."""
        self.assertEqual(Accounts.parse([{"all": True}]), ALL_ACCOUNTS)
        self.assertIn("anything", ALL_ACCOUNTS)

    def test_an_empty_list_is_no_account(self) -> None:
        """It is false as well."""
        self.assertEqual(Accounts.parse([]), NO_ACCOUNTS)
        self.assertFalse(NO_ACCOUNTS)
        self.assertNotIn("", NO_ACCOUNTS)
        self.assertTrue(Accounts.parse(["a"]))

    def test_one_wrong_entry_refuses_the_whole_list(self) -> None:
        """Otherwise a mistake would go unnoticed."""
        for wrong in (
            "",
            "x" * 257,
            "a\n",
            7,
            None,
            True,
            ["a"],
            {},
            {"prefix": ""},
            {"prefix": 7},
            {"prefix": "a", "all": True},
            {"all": False},
            {"all": 1},
            {"match": "a"},
        ):
            with self.assertRaises(ValueError, msg=repr(wrong)):
                Accounts.parse(["a", wrong])
        for value in ("a", b"a", None, {"all": True}, 7):
            with self.assertRaises(ValueError, msg=repr(value)):
                Accounts.parse(value)

    def test_a_list_has_a_limit(self) -> None:
        """At its edge."""
        names = [f"user-{number}" for number in range(MAX_ENTRIES)]
        self.assertIn("user-0", Accounts.parse(names))
        with self.assertRaises(ValueError):
            Accounts.parse([*names, "one more"])


class GrantTests(SynchronousTestCase):
    """What may be done with an account."""

    def test_to_subscribe_and_to_publish_are_two_rights(self) -> None:
        """One does not bring the other."""
        grant = Grant("user-42", Accounts.parse(["a"]), Accounts.parse(["b"]))
        grant.check(Action.SUBSCRIBE, "a")
        grant.check(Action.PUBLISH, "b")
        for action, account in ((Action.PUBLISH, "a"), (Action.SUBSCRIBE, "b")):
            with self.assertRaises(InsufficientScope):
                grant.check(action, account)

    def test_without_authentication_everything_but_administration_is_allowed(self) -> None:
        """As before there was any."""
        OPEN.check(Action.SUBSCRIBE, "a")
        OPEN.check(Action.PUBLISH, "a")
        self.assertFalse(OPEN.is_admin)
