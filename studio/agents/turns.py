"""Threads for what waits for the API: each caller has so many of their own, so that nobody waits for another's."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import ParamSpec, TypeVar
from weakref import WeakValueDictionary

import anyio
from anyio import CapacityLimiter

AT_ONCE = 4  # threads a caller
P = ParamSpec("P")
T = TypeVar("T")
_turn: ContextVar[CapacityLimiter] = ContextVar("turn")


class Turns:
    """The threads of each caller, who is known by any string. A caller who has no call under way is forgotten."""

    def __init__(self) -> None:
        self._of: WeakValueDictionary[str, CapacityLimiter] = WeakValueDictionary()

    def take(self, caller: str) -> None:
        """From now on `aside` uses this caller's threads, in this call of a tool."""
        mine = self._of.get(caller)
        if mine is None:
            mine = self._of[caller] = CapacityLimiter(AT_ONCE)
        _turn.set(mine)


async def aside(work: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
    """What `work` returns, in a thread of who calls. Once a thread is free."""
    return await anyio.to_thread.run_sync(partial(work, *args, **named), limiter=_turn.get())
