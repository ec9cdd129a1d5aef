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
from asyncplumber.interfaces.callback_urls import REMEMBERED_URL, CallbackUrl, ICallbackUrls
from asyncplumber.interfaces.registry_listing import (
    COUNTED_HOOKS,
    MAX_MEMBERS,
    Hook,
    HookQuery,
    Member,
)
from asyncplumber.interfaces.relay import (
    Deliver,
    ICarrier,
    InstanceGone,
    IRelay,
    Reached,
    RelayFailed,
)
from asyncplumber.interfaces.revocations import (
    MAX_REVOCATIONS,
    IRevocations,
    Revocation,
    RevocationKind,
)
from asyncplumber.interfaces.starter import (
    Answer,
    Dispatch,
    Finished,
    IStarter,
    IStoppableStarter,
    Later,
    Refused,
    StarterFailed,
)
from asyncplumber.interfaces.store import (
    LEASE,
    PAGE_BYTES,
    Appended,
    CursorLost,
    CursorMoved,
    HistorySize,
    IHistory,
    IRegistry,
    ISecrets,
    IStore,
)
from asyncplumber.interfaces.subscriber import ISubscriber, ITaskSubscriber
from asyncplumber.interfaces.tasks import Claim, Claimed, ITasks

__all__ = [
    "COUNTED_HOOKS",
    "LEASE",
    "MAX_MEMBERS",
    "MAX_REVOCATIONS",
    "PAGE_BYTES",
    "REMEMBERED_URL",
    "Answer",
    "Appended",
    "AwaitsBody",
    "CallbackUrl",
    "Claim",
    "Claimed",
    "CursorLost",
    "CursorMoved",
    "Decision",
    "Deliver",
    "Dispatch",
    "Facts",
    "Finished",
    "HistorySize",
    "Hook",
    "HookQuery",
    "IAuthority",
    "ICallbackUrls",
    "ICarrier",
    "IHistory",
    "IRegistry",
    "IRelay",
    "IRevocations",
    "ISecrets",
    "IStarter",
    "IStoppableStarter",
    "IStore",
    "ISubscriber",
    "ITaskSubscriber",
    "ITasks",
    "InstanceGone",
    "Later",
    "Member",
    "Reached",
    "Refused",
    "RelayFailed",
    "Revocation",
    "RevocationKind",
    "StarterFailed",
    "Verified",
]
