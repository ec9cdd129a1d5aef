"""What all instances together have: this one asks the others, and puts their answers together."""

from __future__ import annotations

from typing import Any

from asyncplumber.errors import BadAccount, PlumberError
from asyncplumber.event import Cursor, checked_account
from asyncplumber.http.instance_status import AccountQuery, InstanceStatus
from asyncplumber.http.refusals import KEPT
from asyncplumber.interfaces import Hook, HookQuery, IHistory, IRegistry, Member
from asyncplumber.relays.questions import Questions

Document = dict[str, Any]


class Cluster:
    """The view of all instances on one store."""

    def __init__(
        self,
        own: InstanceStatus,
        history: IHistory,
        registry: IRegistry | None,
        questions: Questions,
        *,
        has_authentication: bool = False,
    ) -> None:
        """
        Args:
            own: What this instance tells about itself.
            history: Where the events are.
            registry: Where the instances are.  None if this one is alone on its store.
            questions: Asks the others.
            has_authentication: Whether there are credentials, which can be revoked.
        """
        self._has_authentication = has_authentication
        self._own = own
        self._history = history
        self._registry = registry
        self._questions = questions

    async def overview(self) -> Document:
        """
        Return all instances with their leases and figures, and the refusals of all.

        While the store is away, this instance alone is shown, and ``store`` says why.  An instance
        that does not answer has None as its status.
        """
        members, problem = await self._members()
        statuses = await self._statuses(members, AccountQuery(limit=0))
        instances = []
        refusals: list[Document] = []
        for id, member in members.items():
            status = statuses[id]
            if status is not None:
                refused = status.pop("refusals", [])
                refusals += [{**each, "instance": id} for each in refused]
            instances.append(
                {
                    "id": id,
                    "url": "" if member is None else member.instance.url,
                    "expires_in": None if member is None else member.expires_in,
                    "hooks": None if member is None else member.hooks,
                    "status": status,
                }
            )
        # Times of this form are in the order of their text.
        refusals.sort(key=lambda each: str(each.get("time")), reverse=True)
        return {
            "here": self._own.id,
            "shared": self._registry is not None,
            "authentication": self._has_authentication,
            "store": problem,
            "instances": instances,
            "refusals": refusals[:KEPT],
        }

    async def accounts(self, query: AccountQuery) -> Document:
        """
        Return a page of the accounts that have a channel at any instance, by name.

        An account that is searched for by its whole name is shown even if nobody has a channel.
        """
        search, limit = query.search or "", query.limit
        query = query._replace(search=search)
        members, problem = await self._members()
        statuses = await self._statuses(members, query)
        rows: dict[str, list[Document]] = {}
        for id, status in statuses.items():
            for each in status["accounts"] if status is not None else ():
                place = {key: each[key] for key in ("subscribers", "cursor", "hook")}
                rows.setdefault(each["account"], []).append({"instance": id, **place})
        if not query.after and search not in rows and await self._has_events(search):
            rows[search] = []
        # Each instance gave its first accounts, so the first of all are among them.
        names = sorted(rows)[:limit]
        heads = await self._heads(names)
        return {
            "store": problem,
            "accounts": [
                {
                    "account": name,
                    "subscribers": sum(each["subscribers"] for each in rows[name]),
                    "head": str(heads[name]) if name in heads else None,
                    "instances": rows[name],
                }
                for name in names
            ],
            "next": names[-1] if len(rows) > limit or _is_full(statuses, limit) else None,
            "silent": [id for id, status in statuses.items() if status is None],
        }

    async def hooks(self, query: HookQuery) -> list[Hook]:
        """Return some hooks of the registry.  Raises `Unavailable`."""
        return [] if self._registry is None else await self._registry.hooks(query)

    async def _members(self) -> tuple[dict[str, Member | None], str | None]:
        """
        Return all instances by id, and what is wrong with the store.

        An instance that is not in the registry is None there: this one, before it was added.
        """
        members: dict[str, Member | None] = {}
        problem = None
        if self._registry is not None:
            try:
                members.update({each.instance.id: each for each in await self._registry.members()})
            except PlumberError as error:
                problem = error.message
        members.setdefault(self._own.id, None)
        return members, problem

    async def _statuses(
        self, members: dict[str, Member | None], query: AccountQuery
    ) -> dict[str, Document | None]:
        """Return what each instance tells about itself, in the order of ``members``."""
        own = self._own.id
        others = [
            member.instance
            for id, member in members.items()
            if member is not None and member.expires_in > 0 and id != own
        ]
        answers = await self._questions.ask(others, f"/status?{query.text}")
        found = {
            each.id: answer if _is_document(answer, each.id) else None
            for each, answer in zip(others, answers, strict=True)
        }
        found[own] = self._own.document(query)
        return {id: found.get(id) for id in members}

    async def _has_events(self, name: str) -> bool:
        """Whether there is such an account, and it has had an event."""
        try:
            checked_account(name)
        except BadAccount:
            return False
        heads = await self._heads([name])
        return name in heads and heads[name].seq > 0

    async def _heads(self, names: list[str]) -> dict[str, Cursor]:
        """Return the newest place of each account; nothing while the store is away."""
        if not names:
            return {}
        try:
            return dict(await self._history.heads(names))
        except PlumberError:
            return {}


def _is_full(statuses: dict[str, Document | None], limit: int) -> bool:
    """Whether an instance may have more accounts than it told."""
    return any(status and len(status["accounts"]) >= limit for status in statuses.values())


def _is_document(answer: Any, id: str) -> bool:
    """Whether this is what an instance of this id answers; another version may say it otherwise."""
    try:
        accounts = answer["accounts"]
        return (
            answer["id"] == id
            and isinstance(answer["refusals"], list)
            and isinstance(answer["figures"], dict)
            and all(isinstance(each["account"], str) for each in accounts)
            and all(isinstance(each["subscribers"], int) for each in accounts)
            and all({"cursor", "hook"} <= each.keys() for each in accounts)
        )
    except (KeyError, TypeError, AttributeError):
        return False
