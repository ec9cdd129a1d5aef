"""A sender as a table ``[[sender]]`` of the ``--auth`` file."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace

from asyncplumber.auth.secret_files import read_secret_lines
from asyncplumber.auth.senders.schemes import (
    GITHUB,
    SLACK,
    STANDARD,
    STRIPE,
    TOLERANCE,
    Content,
    Keys,
    Proof,
    Scheme,
    standard_keys,
)
from asyncplumber.auth.senders.senders import Naming, Sender
from asyncplumber.auth.table import Table

SHORTEST_SECRET = 16  # bytes
MAX_TOLERANCE = 3600  # seconds
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # a token (RFC 9110, 5.6.2)
# These say something else already.
_TAKEN = frozenset({"authorization", "cookie", "host", "content-type", "content-length"})

#: Each with where it has ids and types.
PRESETS: Mapping[str, tuple[tuple[Scheme, ...], Naming]] = {
    "standard": (STANDARD, Naming(type_member="type")),
    "github": ((GITHUB,), Naming(id_header=b"x-github-delivery", type_header=b"x-github-event")),
    "stripe": ((STRIPE,), Naming(id_member="id", type_member="type")),
    "slack": ((SLACK,), Naming(id_member="event_id", type_member="type")),
}
SCHEMES = (*PRESETS, "hmac", "token")


def from_toml(value: object) -> Sender:
    """
    Return the sender that a table describes, with the secrets from its files.

    Raises:
        ValueError: A key is missing, unknown or wrong, or a file with secrets is.
    """
    table = Table(value, "[[sender]]")
    name = table.text("name")
    if not name.isprintable():
        raise table.error("name", "is printable")
    table.where = f"[[sender]] {name!r}"
    kind = table.one_of("scheme", SCHEMES, "")
    schemes, naming = PRESETS[kind] if kind in PRESETS else _template(table, kind)
    if any("timestamp" in scheme.content for scheme in schemes):
        tolerance = table.whole("tolerance", TOLERANCE, 1, MAX_TOLERANCE)
        schemes = tuple(replace(scheme, tolerance=tolerance) for scheme in schemes)
    if "type_header" in table or "type_member" in table:
        naming = replace(
            naming,
            type_header=_optional_header(table, "type_header"),
            type_member=table.optional_text("type_member"),
        )
    accounts = table.accounts("accounts")
    keys = _keys(table, standard_keys if kind == "standard" else _plain_keys)
    table.close()
    return Sender(name, accounts, schemes, keys, naming, answers_challenge=kind == "slack")


def _plain_keys(lines: tuple[bytes, ...]) -> Keys:
    return Keys(lines)


def _keys(table: Table, parse: Callable[[tuple[bytes, ...]], Keys]) -> Keys:
    """Read all secrets of all files."""
    found = Keys()
    for path in table.texts("secret_files"):
        try:
            keys = parse(read_secret_lines(path, SHORTEST_SECRET))
            if any(len(secret) < SHORTEST_SECRET for secret in keys.secrets):
                raise ValueError(f"a secret has at least {SHORTEST_SECRET} bytes")
        except ValueError as error:
            text = str(error)
            where = text if path in text else f"{path}: {text}"
            raise ValueError(f"{table.where}: secret_files: {where}") from None
        found = Keys(found.secrets + keys.secrets, found.public + keys.public)
    return found


def _template(table: Table, kind: str) -> tuple[tuple[Scheme, ...], Naming]:
    """Return the one scheme of ``hmac`` or ``token``, and where it has the id."""
    header = _header(table, "header")
    prefix = _ascii(table, "prefix") or b""
    id_header = _optional_header(table, "id_header")
    naming = Naming(id_header=id_header, id_member=table.optional_text("id_member"))
    if kind == "token":
        scheme = Scheme(header, Proof.PLAIN, Content.parse("{body}"), prefix)
        return (scheme,), naming
    try:
        content = Content.parse(table.text("signed", "{body}"))
    except ValueError as error:
        raise ValueError(f"{table.where}: {error}") from None
    separator = _ascii(table, "separator")
    timestamp_header = timestamp_prefix = None
    if "timestamp" in content:
        if ("timestamp_header" in table) == ("timestamp_prefix" in table):
            raise ValueError(f"{table.where} has timestamp_header or timestamp_prefix: one of them")
        timestamp_header = _optional_header(table, "timestamp_header")
        timestamp_prefix = _ascii(table, "timestamp_prefix")
        if timestamp_prefix is not None and separator is None:
            raise ValueError(f"{table.where} has a timestamp_prefix, so it has a separator")
    if "id" in content:
        if id_header is None:
            raise ValueError(f"{table.where} signs an id, so it has an id_header")
        naming = replace(naming, id_header=None)
    scheme = Scheme(
        header=header,
        proof=Proof(table.one_of("encoding", (Proof.HEX.value, Proof.BASE64.value), "hex")),
        content=content,
        prefix=prefix,
        separator=separator,
        timestamp_header=timestamp_header,
        timestamp_prefix=timestamp_prefix,
        id_header=id_header,
    )
    return (scheme,), naming


def _ascii(table: Table, key: str) -> bytes | None:
    text = table.optional_text(key)
    if text is not None and not (text.isascii() and text.isprintable()):
        raise table.error(key, "is printable ASCII text")
    return text.encode("ascii") if text is not None else None


def _header(table: Table, key: str) -> bytes:
    name = table.text(key).lower()
    if not _HEADER.fullmatch(name) or name in _TAKEN:
        raise table.error(key, "is the name of a header that has no other meaning")
    return name.encode("ascii")


def _optional_header(table: Table, key: str) -> bytes | None:
    return _header(table, key) if key in table else None
