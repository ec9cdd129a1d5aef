"""
The ``--auth`` file: who may do what, and how that is known, in TOML.

It is read as a whole into a value that never changes.  A mistake is an error that names the file,
the table and the key; what it names is never a secret, because secrets are in files of their own.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from asyncplumber.auth.call_out.table import CallOutTable
from asyncplumber.auth.call_out.table import from_toml as call_out_from_toml
from asyncplumber.auth.hosts import parse_hosts
from asyncplumber.auth.key_table import (
    KeyTable,
    anonymous_from_toml,
    cookie_from_toml,
    key_from_toml,
)
from asyncplumber.auth.limits.settings import LimitSettings
from asyncplumber.auth.limits.settings import from_toml as limits_from_toml
from asyncplumber.auth.secret_files import LARGEST_FILE, read_secret_file
from asyncplumber.auth.senders.senders import Sender
from asyncplumber.auth.senders.table import from_toml as sender_from_toml
from asyncplumber.auth.table import Table
from asyncplumber.auth.tokens.issuer_table import IssuerTable
from asyncplumber.auth.tokens.issuer_table import from_toml as issuer_from_toml
from asyncplumber.auth.tokens.jose import load_keys
from asyncplumber.auth.tokens.signing_keys import KeySet, KeySource, Secret, Secrets, parse_secrets
from asyncplumber.grant import Grant

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Config:
    """
    What the file says.

    Attributes:
        audience: The claim ``aud`` of tokens; None for that of ``--audience``.
        hosts: Names by which clients call this server, beside those of ``--host``.
        issuers: Whose tokens are accepted.
        issuer_keys: For each issuer its keys from a file; None if they are fetched.
        keys: Static keys.
        senders: Who signs what they post.
        anonymous: What a request without credential may do; None: nothing.
        cookie: The name of the cookie that may have a token; None: there is none.
        callout: How the application is asked; None: it is not.
        limits: What each client may do at most; None for the defaults.
        files: All files that were read.
    """

    audience: str | None = None
    hosts: tuple[str, ...] = ()
    issuers: tuple[IssuerTable, ...] = ()
    issuer_keys: tuple[KeySource | None, ...] = field(default=(), repr=False)
    keys: tuple[KeyTable, ...] = ()
    senders: tuple[Sender, ...] = ()
    anonymous: Grant | None = None
    cookie: str | None = None
    callout: CallOutTable | None = None
    limits: LimitSettings | None = None
    files: tuple[str, ...] = ()

    @property
    def has_ambient_credentials(self) -> bool:
        """Whether a browser attaches what counts as a credential by itself: a cookie."""
        return self.cookie is not None or (
            self.callout is not None and "cookie" in self.callout.forward
        )

    @property
    def decides(self) -> bool:
        """Whether it has any way to authenticate, or says what needs none."""
        parts = (self.issuers, self.keys, self.senders, self.anonymous, self.callout)
        return any(bool(part) for part in parts)


NOTHING = Config()


def load(path: str) -> Config:
    """
    Read the file, and the files that it names.

    Raises:
        ValueError: It cannot be read, or something in it is wrong.  The sentence is for the
            operator, and has no secret in it.
    """
    try:
        with open(path, "rb") as file:
            text = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
    if len(text) > LARGEST_FILE:
        raise ValueError(f"{path} has more than {LARGEST_FILE} bytes")
    try:
        return _parse(text, path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _parse(text: bytes, path: str) -> Config:
    try:
        value = tomllib.loads(text.decode())
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"it is not TOML: {error}") from None
    _resolve_paths(value, os.path.dirname(os.path.abspath(path)))
    table = Table(value, "the file")
    callout = table.table("callout")
    anonymous = table.table("anonymous")
    cookie = table.table("cookie")
    limits = table.table("limits")
    issuers = _each(table, "issuer", issuer_from_toml, lambda issuer: issuer.iss)
    config = Config(
        audience=table.optional_text("audience"),
        hosts=_hosts(table),
        issuers=issuers,
        issuer_keys=tuple(map(_keys_of, issuers)),
        keys=_each(table, "key", key_from_toml, lambda key: key.name),
        senders=_each(table, "sender", sender_from_toml, lambda sender: sender.name),
        anonymous=anonymous_from_toml(anonymous) if anonymous is not None else None,
        cookie=cookie_from_toml(cookie) if cookie is not None else None,
        callout=call_out_from_toml(callout) if callout is not None else None,
        limits=limits_from_toml(limits) if limits is not None else None,
        files=(path, *_files(value)),
    )
    table.close()
    _check(config)
    return config


# The keys of a table that name files, with one name or a list.
_FILES = ("keys_file", "secret_file", "secret_files", "file")


def _tables(value: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for found in value.values():
        yield from (each for each in (found if isinstance(found, list) else [found]))


def _resolve_paths(value: dict[str, Any], folder: str) -> None:
    """Let the names of files be relative to the folder of the file that names them."""
    for table in _tables(value):
        for key in _FILES:
            if not isinstance(table, dict) or key not in table:
                continue
            name = table[key]
            if isinstance(name, str) and name:
                table[key] = os.path.join(folder, name)
            elif isinstance(name, list):
                table[key] = [
                    os.path.join(folder, each) if isinstance(each, str) and each else each
                    for each in name
                ]


def _files(value: dict[str, Any]) -> Iterator[str]:
    for table in _tables(value):
        if isinstance(table, dict):
            for key in _FILES:
                found = table.get(key, [])
                yield from [found] if isinstance(found, str) else found


def _hosts(table: Table) -> tuple[str, ...]:
    if "hosts" not in table:
        return ()
    try:
        return parse_hosts(" ".join(table.texts("hosts")))
    except ValueError as error:
        raise ValueError(f"{table.where}: hosts: {error}") from None


def _each(
    table: Table, key: str, parse: Callable[[object], T], name: Callable[[T], str]
) -> tuple[T, ...]:
    """Parse each of the tables ``[[key]]``, no two of which have the same name."""
    found = tuple(map(parse, table.tables(key)))
    names = [name(each) for each in found]
    for each in names:
        if names.count(each) > 1:
            raise ValueError(f"two tables [[{key}]] are for {each!r}")
    return found


def _keys_of(issuer: IssuerTable) -> KeySource | None:
    """Read the keys of an issuer, if they are in a file."""
    if issuer.path is None:
        return None
    try:
        if issuer.secret_file is not None:
            return Secrets(parse_secrets(read_secret_file(issuer.secret_file)))
        return _key_set(issuer)
    except ValueError as error:
        key = "secret_file" if issuer.secret_file is not None else "keys_file"
        text = str(error)
        where = text if issuer.path in text else f"{issuer.path}: {text}"
        raise ValueError(f"[[issuer]] {issuer.iss!r}: {key}: {where}") from None


def _key_set(issuer: IssuerTable) -> KeySet:
    """Read public keys, or secrets in a file that nobody else can read."""
    assert issuer.keys_file is not None, "the table has one source"
    try:
        with open(issuer.keys_file, "rb") as file:
            keys = load_keys(file.read(LARGEST_FILE + 1))
    except OSError as error:
        raise ValueError(f"it cannot be read: {error.strerror or error}") from None
    if keys.keys(None, Secret.alg):
        read_secret_file(issuer.keys_file)  # which refuses a file that others can read
    usable = [key for alg in issuer.key_algorithms for key in keys.keys(None, alg)]
    if not usable:
        raise ValueError(f"there is no key for {', '.join(issuer.algorithms)} in it")
    return KeySet(usable)


def _check(config: Config) -> None:
    """Raise ValueError for what is right in each table, and wrong together."""
    digests: dict[bytes, str] = {}
    for key in config.keys:
        for digest in key.digests:
            if digest in digests:
                raise ValueError(f"[[key]] {digests[digest]!r} and {key.name!r} have the same key")
            digests[digest] = key.name
