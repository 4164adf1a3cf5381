"""How far the work is: flows report, whoever shows it (the CLI's bars) listens. Nobody listening is fine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Listener = Callable[[str, int, int], None]
_listeners: list[Listener] = []


def report(what: str, done: int, of: int) -> None:
    for listener in _listeners:
        listener(what, done, of)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Within, `listener(what, done, of)` hears every report; it may be called from any thread."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
