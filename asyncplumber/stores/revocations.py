"""What the stores' revocations have in common."""

from __future__ import annotations

from dataclasses import replace

from asyncplumber.errors import TooManyRequests
from asyncplumber.interfaces import Revocation


def merged(former: Revocation | None, new: Revocation) -> Revocation:
    """
    Return the row that stands for both: nothing that `former` revokes is good again.

    Args:
        former: The row of the same kind and value that has not ended; None if there is none.
        new: What is to be added.
    """
    if former is None:
        return new
    before = new.before
    if before is not None and former.before is not None:
        before = max(before, former.before)
    return replace(new, before=before, expires_at=max(new.expires_at, former.expires_at))


def too_many(limit: int) -> TooManyRequests:
    """Return the error for a store that has that many revocations."""
    return TooManyRequests(
        f"there are {limit} revocations already; revoke a subject in place of its tokens"
    )
