"""
Why a credential was refused, in the words that metrics and the log have.

The client is never told.  Each value becomes a label of a metric, so there are few of them.
"""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """What is wrong with a credential."""

    NONE = "no credential"
    SCHEME = "another scheme"  # of Authorization, such as Basic
    UNKNOWN = "unknown credential"  # no key has it, and nothing here reads tokens
    TOO_LONG = "too long"
    MALFORMED = "malformed"
    HEADER = "header"  # a member of the header is missing, wrong, or not accepted at all
    ALGORITHM = "algorithm"
    TYPE = "type"  # not an access token
    ISSUER = "issuer"
    AUDIENCE = "audience"
    NO_KEY = "no such key"
    SIGNATURE = "signature"
    EXPIRED = "expired"  # or about to, for a stream
    TOO_EARLY = "not yet valid"
    TOO_LONG_LIVED = "lives too long"
    CLAIMS = "claims"  # any other claim is missing or wrong
    GRANTS = "grants"  # the list of accounts is wrong
    REVOKED = "revoked"
    SPENT = "spent"  # a ticket that was used before
