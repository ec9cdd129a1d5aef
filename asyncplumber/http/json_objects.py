"""The bodies of requests that ask for something: JSON objects with members that are known."""

from __future__ import annotations

import json
from typing import Any

from asyncplumber.errors import BadRequest


def members_of(body: bytes, names: tuple[str, ...]) -> dict[str, Any]:
    """
    Return the members of a JSON object.

    Raises:
        BadRequest: It is none, or has others than these.
    """
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise BadRequest("the body is to be a JSON object")
    for name in value:
        if name not in names:
            raise BadRequest(f"the members are {', '.join(names)}; {name[:40]!r} is none of them")
    return value
