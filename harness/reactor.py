"""The reactor of the tests that need a real one."""

from __future__ import annotations

from typing import Any, cast

from twisted.internet import reactor as _reactor

# Twisted's annotations do not say that this object has all interfaces of a reactor.
reactor = cast(Any, _reactor)
