"""
The boundaries between the layers: promises, units and failures.  No logic.

A method that returns a Deferred reports every failure through it and does not raise.
``Unavailable`` means that the store cannot be reached or is too slow.  The call may or may not have
taken effect, and can be repeated.
"""

from __future__ import annotations

from asyncplumber.interfaces.authority import (
    AwaitsBody,
    Decision,
    Facts,
    IAuthority,
    Verified,
)
from asyncplumber.interfaces.relay import (
    Deliver,
    ICarrier,
    InstanceGone,
    IRelay,
    Reached,
    RelayFailed,
)
from asyncplumber.interfaces.store import (
    LEASE,
    PAGE_BYTES,
    Appended,
    CursorLost,
    CursorMoved,
    IHistory,
    IRegistry,
    ISecrets,
    IStore,
)
from asyncplumber.interfaces.subscriber import ISubscriber

__all__ = [
    "LEASE",
    "PAGE_BYTES",
    "Appended",
    "AwaitsBody",
    "CursorLost",
    "CursorMoved",
    "Decision",
    "Deliver",
    "Facts",
    "IAuthority",
    "ICarrier",
    "IHistory",
    "IRegistry",
    "IRelay",
    "ISecrets",
    "IStore",
    "ISubscriber",
    "InstanceGone",
    "Reached",
    "RelayFailed",
    "Verified",
]
