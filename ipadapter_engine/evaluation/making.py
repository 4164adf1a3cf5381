"""The pictures of an evaluation: made a batch at a time, timed on a warm machine, and not made twice."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from ipadapter_engine.engines import PictureEngine, device_of
from ipadapter_engine.errors import GenerationFailed
from ipadapter_engine.evaluation.methods import Making, TrainedSubject
from ipadapter_engine.evaluation.picture_cache import CachedPicture, PictureCache, request_key
from ipadapter_engine.evaluation.subjects import Shot, Subject
from ipadapter_engine.prompts import IDENTITY, ReferencePrompt
from ipadapter_engine.requests import GeneratedImage, GenerationRequest

_CPU_FACTS = Path("/proc/cpuinfo")


def generated(
    engine: PictureEngine, requests: Sequence[GenerationRequest], max_batch: int | None = None
) -> list[GeneratedImage]:
    """As the engine makes them; GenerationFailed where one is NaN, which would be measured as a black picture."""
    pictures = engine.generate(requests, max_batch=max_batch)
    if not all(p.finite for p in pictures):
        raise GenerationFailed("a picture came out as NaN", "set ONMODEL_ENGINE__DTYPE to bfloat16 or float32")
    return pictures


def machine_of(engine: PictureEngine) -> str:
    """What a time was measured on: the device's name, and on a CPU the number of threads."""
    device = device_of(engine)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.get_num_threads()} threads"


def _processor() -> str:
    try:
        lines = _CPU_FACTS.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


class Maker:
    """Makes the shots of a subject, a batch at a time, unless the cache has them. made, found: how many so far."""

    def __init__(self, engine: PictureEngine, cache: PictureCache, making: Making) -> None:
        self.engine, self.cache, self.making, self.made, self.found = engine, cache, making, 0, 0
        self.machine = machine_of(engine)
        self._warm: set[tuple[tuple[str, ...], bool]] = set()

    @property
    def max_batch(self) -> int:
        return self.making.max_batch or self.engine.family.max_batch

    def make(
        self, subject: Subject, heard: tuple[ReferencePrompt, ...], trained: TrainedSubject | None
    ) -> list[CachedPicture]:
        """Every shot of the subject, in their order. Raises GenerationFailed; nothing of that batch is kept then."""
        requests = [self._request(shot, subject, heard, trained) for shot in subject.shots]
        keys = [request_key(r, self.engine) for r in requests]
        ready = {k: p for k in dict.fromkeys(keys) if (p := self.cache.find(k)) is not None}
        missing = [i for i, k in enumerate(keys) if k not in ready]
        self.found += len(keys) - len(missing)
        for start in range(0, len(missing), self.max_batch):
            rows = missing[start : start + self.max_batch]
            batch = [requests[i] for i in rows]
            self._warm_up(batch)
            began = time.perf_counter()
            pictures = generated(self.engine, batch, self.max_batch)
            seconds = (time.perf_counter() - began) / len(batch)
            for i, picture in zip(rows, pictures, strict=True):
                ready[keys[i]] = CachedPicture(picture.pixels, seconds, len(batch), self.machine)
                self.cache.put(keys[i], ready[keys[i]])
            self.made += len(batch)
        return [ready[k] for k in keys]

    def times_of(self, pictures: Sequence[CachedPicture]) -> list[float]:
        """Seconds of a subject's pictures, of those alone that were made on this machine in batches as a whole run's."""
        whole = [
            min(self.max_batch, len(pictures) - i // self.max_batch * self.max_batch) for i in range(len(pictures))
        ]
        return [p.seconds for p, n in zip(pictures, whole, strict=True) if (p.batch, p.where) == (n, self.machine)]

    def _warm_up(self, batch: Sequence[GenerationRequest]) -> None:
        """The first batch of a kind pays for memory and kernels: it is made once before it is timed."""
        kind = (batch[0].adapters, batch[0].character is not None)
        if kind not in self._warm:
            self.engine.generate(batch, max_batch=self.max_batch)
            self._warm.add(kind)

    def _request(
        self, shot: Shot, subject: Subject, heard: tuple[ReferencePrompt, ...], trained: TrainedSubject | None
    ) -> GenerationRequest:
        making = self.making
        return GenerationRequest(
            shot.said(trained.words if trained else subject.words),
            shot.seed,
            heard,
            scale=making.scale if heard else 0.0,
            scales={h.adapter: making.scale for h in heard if h.adapter != IDENTITY},
            steps=making.steps,
            guidance=making.guidance,
            scheduler=making.scheduler,
            width_px=making.size_px,
            height_px=making.size_px,
            character=trained.model if trained else None,
        )
