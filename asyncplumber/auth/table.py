"""Reads a table of a TOML file: every key is known and has its type, or an error names it."""

from __future__ import annotations

from collections.abc import Mapping

from asyncplumber.grant import Accounts


class Table:
    """
    A table that is taken apart, key by key.

    Each method takes one key, and raises ValueError with a sentence that names it.  `close` refuses
    the keys that nobody took.
    """

    def __init__(self, value: object, where: str) -> None:
        """
        Args:
            value: What `tomllib` made of it.
            where: What it is, for messages, such as ``[[sender]] "github"``.

        Raises ValueError if it is no table.
        """
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} is a table")
        self.where = where
        self._left = dict(value)

    def error(self, key: str, what: str) -> ValueError:
        """Return the error about a key."""
        return ValueError(f"{self.where}: {key} {what}")

    def __contains__(self, key: object) -> bool:
        return key in self._left

    def take(self, key: str) -> object:
        """Return the value of a key that has to be there."""
        if key not in self._left:
            raise ValueError(f"{self.where} has no {key}")
        return self._left.pop(key)

    def text(self, key: str, default: str | None = None) -> str:
        """Return a text that is not empty.  With a default, the key may be missing."""
        if key not in self._left and default is not None:
            return default
        value = self.take(key)
        if not isinstance(value, str) or not value:
            raise self.error(key, "is a text, and not empty")
        return value

    def optional_text(self, key: str) -> str | None:
        """Return a text that is not empty; None if the key is missing."""
        return self.text(key) if key in self._left else None

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of texts, of which there is one at least."""
        value = self.take(key)
        if not isinstance(value, list) or not value:
            raise self.error(key, "is a list of texts, and not empty")
        if not all(isinstance(item, str) and item for item in value):
            raise self.error(key, "is a list of texts that are not empty")
        return tuple(value)

    def is_list(self, key: str) -> bool:
        """Whether the value of a key is a list."""
        return isinstance(self._left.get(key), list)

    def flag(self, key: str) -> bool:
        """Return true or false, which is what a missing key is."""
        value = self._left.pop(key, False)
        if not isinstance(value, bool):
            raise self.error(key, "is true or false")
        return value

    def table(self, key: str) -> object | None:
        """Return a table inside of this one, still to be read; None if the key is missing."""
        value = self._left.pop(key, None)
        if value is not None and not isinstance(value, Mapping):
            raise ValueError(f"{self.where}: {key} is one table, [{key}]")
        return value

    def tables(self, key: str) -> tuple[object, ...]:
        """Return a list of tables, still to be read; none if the key is missing."""
        value = self._left.pop(key, [])
        if not isinstance(value, list):
            raise ValueError(f"{self.where}: {key} is a list of tables, [[{key}]]")
        return tuple(value)

    def whole(self, key: str, default: int, least: int, most: int) -> int:
        """Return a whole number within limits, both included."""
        value = self._left.pop(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise self.error(key, f"is a whole number from {least} to {most}")
        return value

    def one_of(self, key: str, choices: Mapping[str, str] | tuple[str, ...], default: str) -> str:
        """Return a text that is one of a few."""
        value = self._left.pop(key, default)
        if not isinstance(value, str) or value not in choices:
            raise self.error(key, f"is one of {', '.join(choices)}")
        return value

    def accounts(self, key: str) -> Accounts:
        """Return a list of accounts, of which there is one at least."""
        value = self.take(key)
        try:
            accounts = Accounts.parse(value)
        except ValueError as error:
            raise ValueError(f"{self.where}: {key}: {error}") from None
        if not accounts:
            raise self.error(key, "has one account at least")
        return accounts

    def close(self) -> None:
        """Raise ValueError for keys that nobody took."""
        if self._left:
            names = ", ".join(map(str, self._left))
            raise ValueError(f"{self.where} has keys that do not exist: {names}")
