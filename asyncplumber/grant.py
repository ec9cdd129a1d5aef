"""
What a client may do: the value that every way to authenticate ends in.

A `Grant` is made once, by the authority in front of both ways in.  What lies behind the gate sees
grants, and never the headers that they came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from asyncplumber.errors import InsufficientScope
from asyncplumber.event import ACCOUNT_LENGTH, is_plain

MAX_ENTRIES = 64  # accounts and patterns in one list of a grant


class Action(Enum):
    """What a request wants to do with an account."""

    SUBSCRIBE = "subscribe"
    PUBLISH = "publish"
    START = "start"


@dataclass(frozen=True, slots=True)
class Accounts:
    """
    A set of accounts.

    Attributes:
        names: Accounts, each exactly as it is.  A name never is a pattern, so that an application
            can write names of its users here.
        prefixes: How the names of further accounts begin.
        every: Whether all accounts are in the set.
    """

    names: frozenset[str] = frozenset()
    prefixes: tuple[str, ...] = ()
    every: bool = False

    def __contains__(self, account: str) -> bool:
        return self.every or account in self.names or account.startswith(self.prefixes)

    def __bool__(self) -> bool:
        return self.every or bool(self.names) or bool(self.prefixes)

    @classmethod
    def parse(cls, value: object) -> Accounts:
        """
        Return the set that a list of a token or of a file stands for.

        A string is one account.  ``{"prefix": "team-7."}`` and ``{"all": true}`` are patterns.

        Raises:
            ValueError: The value is no such list, or has more than `MAX_ENTRIES` entries.  One
                wrong entry refuses the whole list.
        """
        if not isinstance(value, Sequence) or isinstance(value, str | bytes):
            raise ValueError("accounts are a list")
        if len(value) > MAX_ENTRIES:
            raise ValueError(f"a list of accounts has at most {MAX_ENTRIES} entries")
        names: set[str] = set()
        prefixes: list[str] = []
        every = False
        for entry in value:
            if isinstance(entry, str) and is_plain(entry, ACCOUNT_LENGTH):
                names.add(entry)
            elif isinstance(entry, dict) and list(entry) == ["prefix"]:
                prefix = entry["prefix"]
                if not isinstance(prefix, str) or not is_plain(prefix, ACCOUNT_LENGTH):
                    raise ValueError("a prefix is the beginning of an account, and not empty")
                prefixes.append(prefix)
            elif isinstance(entry, dict) and list(entry) == ["all"] and entry["all"] is True:
                every = True
            else:
                raise ValueError('an entry is an account, or {"prefix": "…"}, or {"all": true}')
        return cls(frozenset(names), tuple(prefixes), every)


NO_ACCOUNTS = Accounts()
ALL_ACCOUNTS = Accounts(every=True)


@dataclass(frozen=True, slots=True)
class Grant:
    """
    What one credential allows.

    Attributes:
        subject: Who it is: the unit of limits and of revocation.  Empty for nobody in particular.
        subscribe: The accounts whose events may be read.
        publish: The accounts to which events may be posted.
        until: Seconds since 1970 at which it ends; None if it does not end by itself.
        issued: Seconds since 1970 at which its credential was issued; None if that is not known.
        id: The id of its credential (``jti``), by which it can be revoked; None if it has none.
        mechanism: How the client proved itself, for metrics: ``none``, ``jwt``, ``key``,
            ``cookie``, ``ticket``, ``call-out``, ``sender`` or ``anonymous``.
        is_admin: Whether it may see and change what concerns all accounts.  No token can say so.
        start: The accounts whose tasks may be started and canceled.
    """

    subject: str
    subscribe: Accounts = NO_ACCOUNTS
    publish: Accounts = NO_ACCOUNTS
    until: float | None = None
    issued: float | None = None
    id: str | None = None
    mechanism: str = "none"
    is_admin: bool = False
    start: Accounts = NO_ACCOUNTS

    def allows(self, action: Action, account: str) -> bool:
        """Whether this may be done with this account."""
        if action is Action.SUBSCRIBE:
            return account in self.subscribe
        return account in (self.publish if action is Action.PUBLISH else self.start)

    def check(self, action: Action, account: str) -> None:
        """Raise `InsufficientScope`, the same for accounts that exist and that do not."""
        if not self.allows(action, account):
            raise InsufficientScope


#: What the operator may do who can reach the private port.
OPERATOR = Grant("", ALL_ACCOUNTS, ALL_ACCOUNTS, is_admin=True, start=ALL_ACCOUNTS)
#: Where no authentication is configured, everybody may subscribe, publish and start tasks.
OPEN = Grant("", ALL_ACCOUNTS, ALL_ACCOUNTS, start=ALL_ACCOUNTS)
#: Allows nothing: for paths that need no credential, and for those that check a signature.
NOBODY = Grant("")
