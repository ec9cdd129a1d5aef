"""Builds the authority from what is configured."""

from __future__ import annotations

from collections.abc import Sequence

from asyncplumber.auth.authority import Authority, Parts
from asyncplumber.auth.keys import Keys


def build_authority(*, publisher_keys: Sequence[str] = ()) -> Authority | None:
    """
    Return the authority; None if no authentication is configured.

    Args:
        publisher_keys: The keys of those who may publish to every account.
    """
    keys = Keys.of_publishers(publisher_keys) if publisher_keys else None
    parts = Parts(keys=keys)
    return Authority(parts) if parts != Parts() else None
