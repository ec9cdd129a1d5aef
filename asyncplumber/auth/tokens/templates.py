"""Accounts that are made of other claims, for issuers whose tokens have no list of accounts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from asyncplumber.grant import Accounts

_PLACE = re.compile(r"\{([^{}]*)\}")
# A value can separate nothing and escape from nothing.  ``|`` is in the subjects of Auth0.
_VALUE = re.compile(r"[A-Za-z0-9._:@|-]{1,128}")


@dataclass(frozen=True)
class Template:
    """
    A list of accounts in which ``{sub}`` stands for the claim `sub`, and so on.

    Attributes:
        entries: What `Accounts.parse` takes.
    """

    entries: tuple[Any, ...] = ()

    @classmethod
    def parse(cls, value: object) -> Template:
        """
        Return the template that a list of the configuration stands for.

        Raises:
            ValueError: It is no list of accounts, or has a brace that is no place for a claim.
        """
        if not isinstance(value, Sequence) or isinstance(value, str | bytes):
            raise ValueError("accounts are a list")
        template = cls(tuple(value))
        for text in template._texts():
            if "{" in _PLACE.sub("", text) or "}" in _PLACE.sub("", text):
                raise ValueError("braces stand around the name of a claim, such as user-{sub}")
            if "" in _PLACE.findall(text):
                raise ValueError("there is no name of a claim between the braces")
        names = {name for text in template._texts() for name in _PLACE.findall(text)}
        template.accounts(dict.fromkeys(names, "x"))
        return template

    def _texts(self) -> list[str]:
        """Return the texts in which a claim may stand."""
        entries = [
            entry.get("prefix") if isinstance(entry, dict) else entry for entry in self.entries
        ]
        return [entry for entry in entries if isinstance(entry, str)]

    def accounts(self, claims: Mapping[str, Any]) -> Accounts:
        """
        Return the accounts for these claims.

        Raises:
            ValueError: A claim is missing, or has a value that could change the meaning.
        """
        return Accounts.parse([_filled(entry, claims) for entry in self.entries])


EMPTY = Template()


def _filled(entry: Any, claims: Mapping[str, Any]) -> Any:
    def fill(match: re.Match[str]) -> str:
        value = claims.get(match[1])
        if not isinstance(value, str) or not _VALUE.fullmatch(value):
            raise ValueError(f"the claim {match[1]!r} is missing, or cannot be part of an account")
        return value

    if isinstance(entry, str):
        return _PLACE.sub(fill, entry)
    if isinstance(entry, dict) and isinstance(entry.get("prefix"), str):
        return {**entry, "prefix": _PLACE.sub(fill, entry["prefix"])}
    return entry
