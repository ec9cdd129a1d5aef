"""An issuer of tokens as a table ``[[issuer]]`` of the ``--auth`` file."""

from __future__ import annotations

from dataclasses import dataclass

from asyncplumber.auth.fetch import check_url
from asyncplumber.auth.table import Table
from asyncplumber.auth.tokens.claims import ACCESS_TOKEN, CLAIM, MAX_AGE, Rules
from asyncplumber.auth.tokens.signing_keys import ALGORITHMS
from asyncplumber.auth.tokens.templates import Template
from asyncplumber.event import is_plain

SECRET, PUBLIC = ("HS256",), ("RS256", "ES256", "EdDSA")  # algorithms, by the kind of key
LONGEST_MAX_AGE = 10 * 366 * 86400
# What `types` may have, and what the header ``typ`` may be then, in lower case.
_TYPES = {"at+jwt": (ACCESS_TOKEN,), "JWT": ("jwt", "")}
_NONE = Template()


@dataclass(frozen=True, kw_only=True)
class IssuerTable:
    """
    What the file says of an issuer.  One of the three sources of keys is given.

    Attributes:
        iss: The claim ``iss`` of its tokens, exactly.
        keys_file: A file with public keys.
        secret_file: A file with HS256 secrets, one a line.
        jwks_url: Where its public keys are.
        algorithms: Those that are accepted, if a key has one of them.
        audience: The claim ``aud`` of its tokens; None for that of all issuers.
        types: What the header ``typ`` may be, in lower case; empty is none at all.
        max_age: Seconds that its tokens may live.
        claim: The claim with the accounts.
        subscribe: Accounts of a token without that claim.
        publish: The same, for publishing.
        start: The same, for starting and canceling tasks.
    """

    iss: str
    keys_file: str | None = None
    secret_file: str | None = None
    jwks_url: str | None = None
    algorithms: tuple[str, ...] = PUBLIC
    audience: str | None = None
    types: frozenset[str] = frozenset({ACCESS_TOKEN})
    max_age: int = int(MAX_AGE)
    claim: str = CLAIM
    subscribe: Template = _NONE
    publish: Template = _NONE
    start: Template = _NONE

    @property
    def key_algorithms(self) -> tuple[str, ...]:
        """The algorithms as keys have them."""
        return tuple(ALGORITHMS[name] for name in self.algorithms)

    @property
    def path(self) -> str | None:
        """The file with its keys; None if they are fetched."""
        return self.keys_file or self.secret_file

    def rules(self, audience: str) -> Rules:
        """Return what is asked of its tokens; ``audience`` is that of all issuers."""
        return Rules(
            audience=self.audience or audience,
            types=self.types,
            max_age=self.max_age,
            claim=self.claim,
            subscribe=self.subscribe,
            publish=self.publish,
            start=self.start,
        )


def from_toml(value: object) -> IssuerTable:
    """
    Return the issuer that a table describes.  Its keys are not read.

    Raises ValueError, with a sentence that names the key.
    """
    table = Table(value, "[[issuer]]")
    iss = table.text("iss")
    if not is_plain(iss, 1024):
        raise table.error("iss", "is a text without control characters")
    table.where = f"[[issuer]] {iss!r}"
    sources = [key for key in ("keys_file", "secret_file", "jwks_url") if key in table]
    if len(sources) != 1:
        raise ValueError(f"{table.where} has keys_file, secret_file or jwks_url: one of them")
    types = _subset(table, "types", tuple(_TYPES), ("at+jwt",))
    issuer = IssuerTable(
        iss=iss,
        keys_file=table.optional_text("keys_file"),
        secret_file=table.optional_text("secret_file"),
        jwks_url=_url(table) if "jwks_url" in table else None,
        algorithms=_algorithms(table, sources[0]),
        audience=table.optional_text("audience"),
        types=frozenset(typ for name in types for typ in _TYPES[name]),
        max_age=table.whole("max_age", int(MAX_AGE), 1, LONGEST_MAX_AGE),
        claim=table.text("claim", CLAIM),
        subscribe=_template(table, "subscribe"),
        publish=_template(table, "publish"),
        start=_template(table, "start"),
    )
    table.close()
    return issuer


def _algorithms(table: Table, source: str) -> tuple[str, ...]:
    possible = {"secret_file": SECRET, "jwks_url": PUBLIC, "keys_file": SECRET + PUBLIC}[source]
    return _subset(table, "algorithms", possible, possible)


def _subset(
    table: Table, key: str, possible: tuple[str, ...], default: tuple[str, ...]
) -> tuple[str, ...]:
    if key not in table:
        return default
    found = table.texts(key)
    if not set(found) <= set(possible):
        raise table.error(key, f"is a list of some of {', '.join(possible)}")
    return found


def _url(table: Table) -> str:
    try:
        url, is_private = check_url(table.take("jwks_url"))
    except ValueError as error:
        raise ValueError(f"{table.where}: jwks_url: {error}") from None
    if not is_private:
        raise table.error("jwks_url", "is https://, or http:// of this machine")
    return url


def _template(table: Table, key: str) -> Template:
    if key not in table:
        return _NONE
    try:
        return Template.parse(table.take(key))
    except ValueError as error:
        raise ValueError(f"{table.where}: {key}: {error}") from None
