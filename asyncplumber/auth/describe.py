"""Says in plain words who may do what.  Nothing that it says is a secret."""

from __future__ import annotations

from collections.abc import Iterator

from asyncplumber.auth.build import Configured
from asyncplumber.auth.call_out.table import CallOutTable
from asyncplumber.auth.keys import publisher
from asyncplumber.auth.tokens.issuer_table import IssuerTable
from asyncplumber.auth.tokens.signing_keys import KeySet, KeySource, Secrets
from asyncplumber.auth.tokens.templates import Template
from asyncplumber.grant import Accounts, Grant

_ACTIONS = ("subscribe to", "publish to", "start tasks of")  # in the order of `Action`


def describe(configured: Configured, audience: str) -> Iterator[str]:
    """
    Yield lines about what is configured.

    Args:
        configured: What was read.
        audience: The claim ``aud`` of tokens, if the ``--auth`` file does not say it.
    """
    config = configured.config
    if not configured.decides:
        yield (
            "Nobody is authenticated: everybody may subscribe and publish to all accounts, and "
            "start their tasks."
        )
        return
    audience = config.audience or audience
    for table, keys in zip(config.issuers, config.issuer_keys, strict=True):
        yield from _issuer(table, keys, audience)
    if configured.secrets:
        which = "no issuer above" if config.issuers else "any issuer, or none"
        yield f"Tokens that name {which}, for the audience {audience!r}:"
        yield f"  keys: {_number(len(configured.secrets), 'secret')} of HS256, in a file"
        yield '  accounts: those of the claim "plumber"'
    for key in config.keys:
        yield f"Key {key.name!r} ({_number(len(key.digests), 'key')}): {_grant(key.grant)}"
    if configured.keys:
        count = _number(len(configured.keys), "key")
        yield f"Keys of publishers ({count}): {_grant(publisher(''))}"
    for sender in config.senders:
        yield f"Sender {sender.name!r}, by its signature: {_grant(sender.grant)}"
    if config.cookie is not None:
        yield f"Cookie {config.cookie}: a token in it counts, for subscribing only"
    if config.callout is not None:
        yield from _callout(config.callout)
    if config.anonymous is not None:
        yield f"Requests without credential: {_grant(config.anonymous)}"
    if config.hosts:
        yield f"Further names of this server: {', '.join(config.hosts)}"


def _issuer(table: IssuerTable, keys: KeySource | None, audience: str) -> Iterator[str]:
    yield f"Tokens of {table.iss!r}, for the audience {table.audience or audience!r}:"
    if table.jwks_url is not None:
        yield f"  keys: from {_without_query(table.jwks_url)}, for {', '.join(table.algorithms)}"
    elif isinstance(keys, KeySet):
        named = [f"{key.kid or 'without id'} ({key.alg})" for key in keys.all]
        yield f"  keys: {', '.join(named)}, in {table.path}"
    elif isinstance(keys, Secrets):
        yield f"  keys: {_number(len(keys.all), 'secret')} of HS256, in {table.path}"
    yield f"  accounts: those of the claim {table.claim!r}{_templates(table)}"
    types = ", ".join(sorted(typ or "none" for typ in table.types))
    yield f"  they live {table.max_age:,} s at most; their typ is: {types}"


def _templates(table: IssuerTable) -> str:
    found = [
        f"{action} {_entries(template)}"
        for action, template in zip(
            _ACTIONS, (table.subscribe, table.publish, table.start), strict=True
        )
        if template.entries
    ]
    return f"; without it: {', '.join(found)}" if found else ""


def _entries(template: Template) -> str:
    found = []
    for entry in template.entries:
        if isinstance(entry, str):
            found.append(entry)
        else:
            found.append(f"{entry['prefix']}…" if "prefix" in entry else "all accounts")
    return ", ".join(found)


def _callout(table: CallOutTable) -> Iterator[str]:
    yield f"All others: the application decides, at {_without_query(table.url)}"
    yield f"  it is sent: {', '.join(table.forward)}"
    yield (
        f"  it is asked again after {table.recheck:,} s about streams, which stay for "
        f"{table.grace:,} s while it cannot be asked"
    )
    if table.secret is not None:
        yield "  the questions are signed"
    if not table.is_private:
        yield "  WARNING: http:// over a network shows the credentials of all users"


def _grant(grant: Grant) -> str:
    parts = [
        f"{action} {_accounts(accounts)}"
        for action, accounts in zip(
            _ACTIONS, (grant.subscribe, grant.publish, grant.start), strict=True
        )
        if accounts
    ]
    if grant.is_admin:
        parts.append("administrate")
    return ", ".join(parts)


def _accounts(accounts: Accounts) -> str:
    if accounts.every:
        return "all accounts"
    return ", ".join([*sorted(accounts.names), *(f"{prefix}…" for prefix in accounts.prefixes)])


def _number(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _without_query(url: str) -> str:
    """Leave out what may be a key of an interface."""
    return url.partition("?")[0]
