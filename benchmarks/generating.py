"""Rows of generation: one mix of requests, by the engine and by diffusers in turn, and whether both made the same."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.diffusers_peer import Diffusers
from benchmarks.mixes import drawn_embeddings, mixed
from benchmarks.rows import Row, at_most, faster, not_measured
from ipadapter_engine.checkpoints import CheckpointPaths
from ipadapter_engine.pipeline import Engine
from ipadapter_engine.requests import GenerationRequest

PEER = "diffusers, one call for requests that share references, scale and window"
EQUAL = 1e-4  # latents in float32
LARGE = 10.0  # what no trained model's latents reach: random weights predict no noise, and a last step divides by what is left
EQUAL_SHARE = 1e-3  # of the largest latent, on a GPU, whose kernels change with the size of a batch
WARMING = 3  # requests before the clock runs
TFLOP_AN_IMAGE = 35.0  # SD1.5, 512 px, 20 steps with guidance, and its decoding (20 × 1.607 + 2.5)


@dataclass(frozen=True)
class Generating:
    """What a row of generation is made of. times: what the ratio must be; rounds: ours and the peer's in turn.

    tflop_an_image: what a picture is multiplied and added, for the row beside the limit.
    """

    name: str
    count: int
    times: float
    rounds: int
    numbers: dict[str, Any]
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    max_batch: int | None = None
    tflop_an_image: float | Literal["counted"] | None = None

    @property
    def titles(self) -> tuple[str, str]:
        return f"{self.name}, {self.count} mixed requests", f"{self.name}, largest difference of latents"


def measured(plan: Generating, paths: CheckpointPaths) -> Iterator[Row]:
    """Rows of speed and of equality. Where the pictures differ, both are missed."""
    engine, peer, requests = _opened(plan, paths, plan.dtype)
    size = plan.max_batch or engine.family.max_batch
    exact = plan.dtype == torch.float32
    error = 0.0 if exact else _error_in_float32(plan, paths, requests)
    engine.generate(requests[:WARMING], max_batch=size)
    peer.make(requests[:WARMING], size)
    ours_s, peers_s = [], []
    for _ in range(plan.rounds):
        took, made = timed(lambda: [(p.image, p.latents) for p in engine.generate(requests, max_batch=size)], plan)
        ours_s.append(took)
        took, others = timed(lambda: [(p.image, p.latents) for p in peer.make(requests, size)], plan)
        peers_s.append(took)
        if exact:
            error = max(error, difference([x for _, x in made], [x for _, x in others], plan.device))
    print(f"{plan.name}: {_told(ours_s)} s against {_told(peers_s)} s", file=sys.stderr)
    yield from rows(plan, ours_s, peers_s, error)
    if plan.tflop_an_image == "counted":
        plan = replace(plan, tflop_an_image=counted_tflop(engine, requests[:size]))
    if plan.tflop_an_image is not None:
        yield beside_the_limit(plan, ours_s)


def rows(plan: Generating, ours_s: Sequence[float], peers_s: Sequence[float], error: float) -> Iterator[Row]:
    """What measured seconds, and the largest difference of latents, say."""
    ours, peer = (plan.count / statistics.median(took) for took in (ours_s, peers_s))
    limit = EQUAL if plan.device == "cpu" else EQUAL_SHARE
    speed, equality = plan.titles
    note = "" if plan.rounds >= 5 else f"medians of {plan.rounds}, in turn"
    yield faster(speed, ours, "images/s", PEER, peer, plan.times, equal=error <= limit, note=note)
    yield at_most(
        equality, error, limit, f"of latents to {LARGE:g}" if plan.device == "cpu" else "of the largest, in float32"
    )


def beside_the_limit(plan: Generating, ours_s: Sequence[float]) -> Row:
    """What the device's best rate of multiplying matrices would allow, were there nothing else to do."""
    assert isinstance(plan.tflop_an_image, float)
    side, repeats = (8192, 20) if plan.device != "cpu" else (2048, 5)
    limit = matrix_rate(plan.device, plan.dtype, side, repeats) / plan.tflop_an_image
    return Row(
        f"{plan.name}, beside the matrix rate", plan.count / statistics.median(ours_s), "images/s", "", True,
        f"{plan.tflop_an_image:.3g} TFLOP an image over the measured rate of matrix products", limit,
    )  # fmt: skip


def counted_tflop(engine: Engine, requests: Sequence[GenerationRequest]) -> float:
    """TFLOP a picture of these: convolutions and matrix products, on a GPU without the decoding, which has a thread of its own."""
    with FlopCounterMode(display=False) as counter:
        engine.generate(requests)
    return float(counter.get_total_flops()) / len(requests) / 1e12


def unmeasured(plan: Generating, why: str) -> Iterator[Row]:
    speed, equality = plan.titles
    yield not_measured(speed, "images/s", f"ratio >= {plan.times:g}", why, PEER)
    yield not_measured(equality, "of the largest, in float32", f"<= {EQUAL_SHARE:g}", why)
    if plan.tflop_an_image is not None:
        yield not_measured(f"{plan.name}, beside the matrix rate", "images/s", "", why)


def difference(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], device: str) -> float:
    """The largest of all pictures, of latents beyond LARGE as it is of such that are LARGE: a rounding grows with the number.
    On a GPU as a share of the largest latent. Infinite where one is not finite."""
    largest = max(float(np.abs(x).max()) for x in theirs)
    error = max(float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True))
    if not np.isfinite([error, largest]).all():
        return float("inf")
    return error / max(1.0, largest / LARGE) if device == "cpu" else error / largest


def timed(make: Callable[[], Any], plan: Generating) -> tuple[float, Any]:
    """Seconds until everything is on the host, and what was made."""
    began = time.perf_counter()
    made = make()
    if plan.device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - began, made


def matrix_rate(device: str, dtype: torch.dtype, side: int, repeats: int) -> float:
    """TFLOP a second of square products, the best of three goes."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(4):  # the first warms up
        _wait(device)
        began = time.perf_counter()
        for _ in range(repeats):
            a @ b
        _wait(device)
        best = max(best, repeats * 2 * side**3 / (time.perf_counter() - began) / 1e12)
    return best


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def _opened(
    plan: Generating, paths: CheckpointPaths, dtype: torch.dtype
) -> tuple[Engine, Diffusers, list[GenerationRequest]]:
    paths = paths.resolved()
    assert paths.adapter is not None
    engine = Engine.open(replace(paths, controls={}), device=plan.device, dtype=dtype)
    peer = Diffusers(paths.base, paths.adapter, engine)
    return engine, peer, mixed(plan.count, drawn_embeddings(24, peer.dim), **plan.numbers)


def _error_in_float32(plan: Generating, paths: CheckpointPaths, requests: Sequence[GenerationRequest]) -> float:
    """Half precision rounds differently in every batch: that both make the same is asked of float32, of some requests."""
    tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        engine, peer, _ = _opened(plan, paths, torch.float32)
        few = [replace(r, steps=4) for r in requests[:4]]
        ours = [p.latents for p in engine.generate(few)]
        return difference(ours, [p.latents for p in peer.make(few, 4)], plan.device)
    finally:
        torch.backends.cudnn.allow_tf32 = tf32


def _told(seconds: Sequence[float]) -> str:
    return ", ".join(f"{s:.2f}" for s in seconds)
