"""What begins tasks, and `open_starter`, which makes what ``--starter`` names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from asyncplumber.interfaces import IStarter
from asyncplumber.starters.address import Address, CeleryAddress


def open_starter(
    address: Address,
    reactor: Any,
    now: Callable[[], float],
    *,
    secrets: Sequence[bytes] = (),
    timeout: float,
    answer_limit: int,
) -> IStarter:
    """
    Make the starter of an address.  Only the library that is needed is imported.

    Args:
        address: Of the application, or of a task of Celery.
        reactor: Runs it.
        now: Returns the seconds since 1970.
        secrets: What requests to the application are signed with; none for no signature.
        timeout: Seconds in which the application, or the broker, has to take a task.
        answer_limit: The most bytes of a result in the application's answer.

    Raises:
        ValueError: The Celery app cannot be had.  The message is a sentence for the user.
    """
    if isinstance(address, CeleryAddress):
        from asyncplumber.starters.celery import CeleryStarter, find_app

        return CeleryStarter(find_app(address.app), address.task, reactor, timeout=timeout)
    from asyncplumber.starters.webhook import WebhookStarter

    return WebhookStarter.over_treq(
        address, reactor, now, secrets=secrets, timeout=timeout, answer_limit=answer_limit
    )
