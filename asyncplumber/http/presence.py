"""How many subscribers an account has: at this instance, and in the whole cluster."""

from __future__ import annotations

from asyncplumber.core.hub import Hub
from asyncplumber.interfaces import IRegistry
from asyncplumber.relays.presence import PresenceClient


class Presence:
    """Asks the instances that have a hook for an account, and adds up what they say."""

    def __init__(
        self, hub: Hub, registry: IRegistry | None, instance_id: str, client: PresenceClient
    ) -> None:
        """``registry`` is None if this instance is alone on its store."""
        self._hub = hub
        self._registry = registry
        self._instance_id = instance_id
        self._client = client

    async def of(self, account: str) -> dict[str, int]:
        """
        Return the number of subscribers, of instances that have any, and of subscribers here.

        An instance that does not respond counts as if it had none.
        """
        here = self._hub.count(account)
        counts = [here]
        if self._registry is not None:
            hooks = (await self._registry.instances([account])).get(account, [])
            others = [each for each in hooks if each.id != self._instance_id]
            counts += [count or 0 for count in await self._client.count(others, account)]
        instances = sum(count > 0 for count in counts)
        return {"subscribers": sum(counts), "instances": instances, "here": here}
