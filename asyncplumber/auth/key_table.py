"""Static keys, and what nobody needs a credential for, as tables of the ``--auth`` file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from asyncplumber.auth.keys import digest, parse_keys
from asyncplumber.auth.secret_files import read_secret_file
from asyncplumber.auth.table import Table
from asyncplumber.grant import NO_ACCOUNTS, Accounts, Grant

_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
# A token of RFC 6265.  The prefixes let a browser refuse a cookie that a neighbour has set.
_COOKIE = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
SAFE_COOKIES = ("__Host-", "__Secure-")


@dataclass(frozen=True)
class KeyTable:
    """
    Who shows one of some keys, and what that allows.

    Attributes:
        name: Who it is, in logs and as the subject of limits and of revocation.
        grant: What the keys allow.
        digests: The SHA-256 of each.
        path: The file with the keys; None if their digests are in the configuration.
    """

    name: str
    grant: Grant
    digests: tuple[bytes, ...] = field(repr=False)
    path: str | None = None

    @property
    def grants(self) -> Mapping[bytes, Grant]:
        """What each key allows, by its digest."""
        return dict.fromkeys(self.digests, self.grant)


def key_from_toml(value: object) -> KeyTable:
    """
    Return the keys that a table ``[[key]]`` describes.

    Raises ValueError, with a sentence that names the key of the table.
    """
    table = Table(value, "[[key]]")
    name = table.text("name")
    if not name.isprintable() or len(name) > 200:
        raise table.error("name", "is a printable text of at most 200 characters")
    table.where = f"[[key]] {name!r}"
    if ("sha256" in table) == ("file" in table):
        raise ValueError(f"{table.where} has sha256 or file: one of them")
    path = table.optional_text("file")
    digests = _digests(table) if path is None else _of_file(table, path)
    grant = Grant(
        f"key:{name}",
        _accounts(table, "subscribe"),
        _accounts(table, "publish"),
        mechanism="key",
        is_admin=table.flag("admin"),
        start=_accounts(table, "start"),
    )
    if not (grant.subscribe or grant.publish or grant.start or grant.is_admin):
        raise ValueError(f"{table.where} allows nothing: give subscribe, publish, start or admin")
    table.close()
    return KeyTable(name, grant, digests, path)


def _digests(table: Table) -> tuple[bytes, ...]:
    texts = table.texts("sha256") if table.is_list("sha256") else (table.text("sha256"),)
    if not all(map(_DIGEST.fullmatch, texts)):
        raise table.error("sha256", "is the SHA-256 of a key in 64 hexadecimal digits, or a list")
    return tuple(map(bytes.fromhex, texts))


def _of_file(table: Table, path: str) -> tuple[bytes, ...]:
    try:
        text = read_secret_file(path)
    except ValueError as error:
        raise ValueError(f"{table.where}: file: {error}") from None
    try:
        return tuple(map(digest, parse_keys(text)))
    except ValueError as error:
        raise ValueError(f"{table.where}: file: {path}: {error}") from None


def _accounts(table: Table, key: str) -> Accounts:
    return table.accounts(key) if key in table else NO_ACCOUNTS


def anonymous_from_toml(value: object) -> Grant:
    """Return what the table ``[anonymous]`` allows.  Raises ValueError."""
    table = Table(value, "[anonymous]")
    grant = Grant(
        "",
        _accounts(table, "subscribe"),
        _accounts(table, "publish"),
        mechanism="anonymous",
        start=_accounts(table, "start"),
    )
    table.close()
    if not (grant.subscribe or grant.publish or grant.start):
        raise ValueError(
            "[anonymous] allows nothing: give subscribe, publish or start, or leave it out"
        )
    return grant


def cookie_from_toml(value: object) -> str:
    """Return the name of the cookie of the table ``[cookie]``.  Raises ValueError."""
    table = Table(value, "[cookie]")
    name = table.text("name", "__Host-plumber")
    if not _COOKIE.fullmatch(name) or not name.startswith(SAFE_COOKIES):
        raise table.error("name", "is the name of a cookie that begins with __Host- or __Secure-")
    table.close()
    return name
