"""Engines kept warm: the least recently used make room for others, by the memory that their weights take."""

from __future__ import annotations

import gc
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil  # type: ignore[import-untyped]
import torch
from torch import nn

if TYPE_CHECKING:
    from ipadapter_engine.engines import PictureEngine

SHARE = 0.7  # of a device's memory: the rest is for batches


class WarmEngines:
    """Engines by what they were opened from, up to so many bytes of weights. Any thread may ask; engines are opened one
    at a time, as two would count on the same memory.

    Whoever holds an engine that has to make room goes on with it: its memory is free when nobody does any more. The one
    that was asked for last always stays.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._table, self._opening = threading.Lock(), threading.Lock()
        self._warm: OrderedDict[Hashable, _Warm] = OrderedDict()  # the least recently used first
        self._known_bytes: dict[Hashable, int] = {}  # of engines that were open once

    def get(self, key: Hashable, opener: Callable[[], PictureEngine]) -> PictureEngine:
        """The engine of this key, opened or warm. What the opener raises passes through."""
        if (engine := self._taken(key)) is not None:
            return engine
        with self._opening:
            if (engine := self._taken(key)) is not None:
                return engine
            with self._table:
                self._make_room(self._known_bytes.get(key, 0))
            engine = opener()
            with self._table:
                self._known_bytes[key] = weight_bytes(engine)
                self._warm[key] = _Warm(engine, self._known_bytes[key])
                self._make_room(0)
            return engine

    @property
    def bytes(self) -> int:
        """What the weights of all warm engines take."""
        with self._table:
            return self._bytes()

    def _taken(self, key: Hashable) -> PictureEngine | None:
        with self._table:
            warm = self._warm.get(key)
            if warm is None:
                return None
            self._warm.move_to_end(key)
            return warm.engine

    def _make_room(self, needed: int) -> None:
        """Let go of what was used longest ago until `needed` more bytes fit. The table is held."""
        before = len(self._warm)
        while self._warm and self._bytes() + needed > self.limit_bytes and (needed or len(self._warm) > 1):
            self._warm.popitem(last=False)
        if len(self._warm) < before:
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _bytes(self) -> int:
        return sum(warm.bytes for warm in self._warm.values())


@dataclass
class _Warm:
    engine: PictureEngine
    bytes: int


def limit_of(device: torch.device | str) -> int:
    """SHARE of a device's memory, of the machine's for the CPU."""
    device = torch.device(device)
    if device.type == "cuda":
        return int(SHARE * torch.cuda.get_device_properties(device).total_memory)
    return int(SHARE * psutil.virtual_memory().total)


def weight_bytes(engine: PictureEngine) -> int:
    """Bytes of all weights of an open engine; what several parts share counts once."""
    tensors = {t.data_ptr(): t.nbytes for part in _modules(engine.checkpoint, 3) for t in _tensors(part)}
    return sum(tensors.values())


def _modules(part: Any, depth: int) -> Iterator[nn.Module]:
    """The modules that an open checkpoint holds, in itself, in its lists and by name."""
    if isinstance(part, nn.Module):
        yield part
    elif depth and isinstance(part, dict):
        for value in part.values():
            yield from _modules(value, depth - 1)
    elif depth and isinstance(part, list | tuple):
        for value in part:
            yield from _modules(value, depth - 1)
    elif depth and hasattr(part, "__dict__"):
        yield from _modules(vars(part), depth)


def _tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    yield from module.parameters()
    yield from module.buffers()
