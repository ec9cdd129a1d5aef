"""What the registry lists for the admin page: the instances, and the hooks page by page."""

from __future__ import annotations

from typing import NamedTuple

from asyncplumber.event import Instance

MAX_MEMBERS = 1000  # instances in one list
COUNTED_HOOKS = 10_000  # hooks of one instance that are counted; the count says "so many, or more"
HOOKS_PAGE = 100  # hooks in one page


class Member(NamedTuple):
    """
    One instance in the registry.

    Attributes:
        instance: The instance.
        expires_in: Seconds until its lease ends; negative if it has ended.
        hooks: How many hooks it has; `COUNTED_HOOKS` stands for that many or more.
    """

    instance: Instance
    expires_in: float
    hooks: int


class Hook(NamedTuple):
    """
    One hook: an instance, or another program, wants the events of an account.

    Attributes:
        account: The account.
        instance_id: Whose hook it is; empty for one that another program has put there.
        url: Where events are posted to; empty if the instance is not in the registry any more.
    """

    account: str
    instance_id: str
    url: str


class HookQuery(NamedTuple):
    """
    Which hooks are wanted.

    Attributes:
        prefix: How the account begins.
        instance_id: Whose hooks; None for those of all.
        after: The last hook of the page before; None for the first page.
        limit: The largest number of hooks.
    """

    prefix: str = ""
    instance_id: str | None = None
    after: Hook | None = None
    limit: int = HOOKS_PAGE
