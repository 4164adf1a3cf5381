"""Open checkpoints kept warm: the least recently used make room for others, by the memory that their weights take."""

from __future__ import annotations

import gc
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ipadapter_engine.checkpoints import Checkpoint, CheckpointPaths
from ipadapter_engine.pipeline import Engine


class WarmEngines:
    """Engines by their paths, up to so many bytes of weights. Any thread may ask; checkpoints are opened one at a time,
    as two would count on the same memory.

    An engine in use is never closed, nor is the one that was used last: where those alone take more than the limit,
    they do, and room is made when they are left.
    """

    def __init__(self, limit_bytes: int, opener: Callable[[CheckpointPaths], Engine] = Engine.open) -> None:
        """opener: how paths become an engine, with its device and dtype; what it raises passes through `get`."""
        self.limit_bytes, self._opener = limit_bytes, opener
        self._table, self._opening = threading.Lock(), threading.Lock()
        self._warm: OrderedDict[Hashable, _Warm] = OrderedDict()  # the least recently used first
        self._known_bytes: dict[Hashable, int] = {}  # of engines that were open once

    @contextmanager
    def get(self, paths: CheckpointPaths) -> Iterator[Engine]:
        """The engine of these paths, opened or warm, in use until the block ends. Raises CheckpointRefused."""
        key = _key(paths)
        warm = self._taken(key)
        if warm is None:
            with self._opening:
                warm = self._taken(key) or self._opened(key, paths)
        try:
            yield warm.engine
        finally:
            with self._table:
                warm.users -= 1
                self._make_room(0)

    @property
    def bytes(self) -> int:
        """What the weights of all warm engines take."""
        with self._table:
            return self._bytes()

    def close(self) -> None:
        """Close every engine that is not in use."""
        with self._table:
            for key in [k for k, warm in self._warm.items() if not warm.users]:
                self._warm.pop(key).engine.close()
            _free()

    def _taken(self, key: Hashable) -> _Warm | None:
        with self._table:
            warm = self._warm.get(key)
            if warm is not None:
                warm.users += 1
                self._warm.move_to_end(key)
            return warm

    def _opened(self, key: Hashable, paths: CheckpointPaths) -> _Warm:
        with self._table:
            self._make_room(self._known_bytes.get(key) or bytes_on_disk(paths))
        engine = self._opener(paths)
        warm = _Warm(engine, weight_bytes(engine.checkpoint), users=1)
        with self._table:
            self._warm[key], self._known_bytes[key] = warm, warm.bytes
            self._make_room(0)
        return warm

    def _make_room(self, needed: int) -> None:
        """Close what was used longest ago until `needed` more bytes fit. The table is held."""
        closed = False
        for key in list(self._warm):
            if self._bytes() + needed <= self.limit_bytes:
                break
            last = not needed and key == next(reversed(self._warm))
            if not self._warm[key].users and not last:
                self._warm.pop(key).engine.close()
                closed = True
        if closed:
            _free()

    def _bytes(self) -> int:
        return sum(warm.bytes for warm in self._warm.values())


@dataclass
class _Warm:
    engine: Engine
    bytes: int
    users: int


def weight_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of all weights of an open checkpoint; what several parts share counts once."""
    parts: list[Any] = [checkpoint.unet, checkpoint.vae, *(t.model for t in checkpoint.text)]
    parts += [*checkpoint.adapters.values(), *(net.model for net in checkpoint.controls.values())]
    if checkpoint.encoder is not None:
        parts.append(checkpoint.encoder.model)
    tensors = {t.data_ptr(): t.nbytes for part in parts if isinstance(part, nn.Module) for t in _tensors(part)}
    return sum(tensors.values())


def _tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def bytes_on_disk(paths: CheckpointPaths) -> int:
    """What the weights take in their files: a guess of what they will take in memory, before they are opened.

    A folder's copies in another precision have no part in it: of each of its folders the largest file, or all shards.
    """
    paths = paths.resolved()
    folders = {f.parent for f in paths.base.glob("*/*.safetensors")} | set(paths.controls.values())
    if paths.encoder is not None:
        folders.add(paths.encoder)
    files = [f for f in (paths.adapter, *paths.adapters.values()) if f is not None and f.is_file()]
    return sum(f.stat().st_size for f in files) + sum(map(_folder_bytes, folders))


def _folder_bytes(folder: Path) -> int:
    sizes = {f.name: f.stat().st_size for f in folder.glob("*.safetensors")}
    shards = [size for name, size in sizes.items() if "-of-" in name]
    return max([sum(shards), *(size for name, size in sizes.items() if "-of-" not in name)])


def _key(paths: CheckpointPaths) -> Hashable:
    """The same files by whatever path they are named."""
    return tuple(_frozen(getattr(paths.resolved(), field.name)) for field in fields(paths))


def _frozen(value: Any) -> Hashable:
    if isinstance(value, Path):
        return value.resolve()
    if isinstance(value, Mapping):
        return tuple(sorted((k, _frozen(v)) for k, v in value.items()))
    if isinstance(value, list | tuple):
        return tuple(map(_frozen, value))
    return value


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
