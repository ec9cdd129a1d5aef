"""Asks the other instances how many subscribers an account has there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

from asyncplumber.event import Instance
from asyncplumber.relays.questions import Questions


class PresenceClient:
    """Asks the other instances, each time anew."""

    def __init__(self, questions: Questions) -> None:
        self._questions = questions

    async def count(self, instances: Iterable[Instance], account: str) -> list[int | None]:
        """
        Return the number of the account's subscribers at each of these instances.

        None stands for an instance that does not say it, or not in time.
        """
        answers = await self._questions.ask(instances, f"/accounts/{quote(account, safe='')}")
        return [_subscribers(answer) for answer in answers]


def _subscribers(answer: Any) -> int | None:
    count = answer.get("subscribers") if isinstance(answer, dict) else None
    return count if isinstance(count, int) else None
