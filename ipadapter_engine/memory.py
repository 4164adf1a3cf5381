"""How many rows of a batch fit into memory: by what batches took, and half as many where one did not fit.

Nothing here knows what a row is: `in_batches` calls `make` with as many as fit and goes on with the rest.
"""

from __future__ import annotations

import ctypes
import gc
import os
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import psutil  # type: ignore[import-untyped]
import torch

from ipadapter_engine import winograd
from ipadapter_engine.errors import GenerationFailed

Row = TypeVar("Row")
Made = TypeVar("Made")

SHARE = 0.9  # of what is free: the rest is for what is not ours
FIRST_BYTES_A_PIXEL = 8192  # a first batch is sized by it: twice what SD1.5's VAE took of a 512 px picture in float32
TRIED_AGAIN_AFTER = 32  # batches that fit, before more rows are tried again: what was short may be free again
LOOK_S = 0.03  # between two looks at the process's memory, which take some 50 µs
_CGROUP = Path("/sys/fs/cgroup")


class MemoryBudget:
    """What batches took on one device, by their key. One thread at a time, as the engine's.

    limit_bytes: what batches may take at most, for a device that is shared; None is what is free.
    """

    def __init__(self, device: torch.device | str, *, limit_bytes: int | None = None) -> None:
        self.device, self.limit_bytes = torch.device(device), limit_bytes
        self._learned: dict[Hashable, _Learned] = {}

    def of(self, key: Hashable, *, most: int, pixels: int) -> BatchBudget:
        """The budget of batches that share `key`: up to `most` rows of pictures with so many pixels."""
        return BatchBudget(self, self._learned.setdefault(key, _Learned(pixels)), most)

    def free_bytes(self) -> int:
        """What a batch may take now."""
        free = int(SHARE * _free_bytes(self.device))
        return free if self.limit_bytes is None else min(free, self.limit_bytes)

    def first_guess(self, pixels: int) -> float:
        """Bytes of a row that nothing is known of: as the greediest known kind by the pixel, else FIRST_BYTES_A_PIXEL."""
        known = [learned.line()[1] / learned.pixels for learned in self._learned.values() if learned.peaks]
        return pixels * max(known, default=FIRST_BYTES_A_PIXEL)


@dataclass
class _Learned:
    """What batches of one key took. peaks: bytes by number of rows; ceiling: more rows did not fit."""

    pixels: int
    peaks: dict[int, int] = field(default_factory=dict)
    ceiling: int | None = None
    since: int = 0  # batches that fit at the ceiling

    def line(self) -> tuple[float, float]:
        """Bytes that a batch takes whatever its rows, and bytes a row.

        From one size of batch alone, or where more rows took no more, all of it is put on the rows of the smallest: too
        much for larger ones, never too little.
        """
        few, many = min(self.peaks), max(self.peaks)
        grown = self.peaks[many] - self.peaks[few]
        if grown <= 0:
            return 0.0, self.peaks[few] / few
        row = grown / (many - few)
        base = self.peaks[few] - row * few
        return (base, row) if base >= 0 else (0.0, self.peaks[many] / many)


@dataclass(frozen=True)
class BatchBudget:
    """How many rows of one kind fit; it learns from every batch."""

    memory: MemoryBudget
    learned: _Learned
    most: int

    def rows(self) -> int:
        """The largest batch that should fit now, from 1 to `most`."""
        learned, free = self.learned, self.memory.free_bytes()
        base, row = learned.line() if learned.peaks else (0.0, self.memory.first_guess(learned.pixels))
        ceiling = self.most if learned.ceiling is None else min(learned.ceiling, self.most)
        return max(1, min(ceiling, int((free - base) / row)))

    def took(self, rows: int, peak_bytes: int) -> None:
        """A batch of so many rows fitted; at its peak it took so many bytes more than there were before it."""
        learned = self.learned
        learned.peaks[rows] = max(peak_bytes, learned.peaks.get(rows, 1))
        if learned.ceiling is not None and rows >= learned.ceiling:
            learned.since += 1
            if learned.since >= TRIED_AGAIN_AFTER:
                learned.since, learned.ceiling = 0, learned.ceiling * 2

    def did_not_fit(self, rows: int) -> None:
        """A batch of so many rows ran out of memory: half as many are made from now on."""
        self.learned.ceiling, self.learned.since = max(1, rows // 2), 0


def in_batches(rows: Sequence[Row], make: Callable[[Sequence[Row]], Sequence[Made]], budget: BatchBudget) -> list[Made]:
    """What `make` gives of all rows, one a row and in their order, in batches that fit.

    A batch that runs out of memory is made again with half as many rows: what `make` does besides must bear that.
    Raises GenerationFailed where one row alone does not fit. Other errors of `make` pass.
    """
    made: list[Made] = []
    while len(made) < len(rows):
        part = rows[len(made) : len(made) + budget.rows()]
        done, shortage = _tried(make, part, budget)
        if done is not None:
            made += done
            continue
        _give_back(budget.memory.device)
        if len(part) == 1:
            raise GenerationFailed(
                f"{_where(budget.memory.device)} ran out of memory on one picture alone: {shortage}",
                "ask for a smaller picture, or make it where more memory is free",
            )
        budget.did_not_fit(len(part))
    return made


def _tried(
    make: Callable[[Sequence[Row]], Sequence[Made]], part: Sequence[Row], budget: BatchBudget
) -> tuple[Sequence[Made] | None, str]:
    """What was made; or None, and what the allocator said. A function of its own: the error holds the frames, and with
    them the tensors, of what failed."""
    peak = _Peak(budget.memory.device)
    if len(part) not in budget.learned.peaks and budget.memory.device.type == "cpu":
        _trim()  # or a batch made from freed memory would seem to take nothing
    try:
        with peak.watched():
            done = make(part)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return None, (str(error).strip() or type(error).__name__).splitlines()[0]
    budget.took(len(part), peak.bytes)
    return done, ""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: torch has a class for it on GPUs, and a sentence on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    told = str(error)
    return isinstance(error, RuntimeError) and any(
        sentence in told for sentence in ("not enough memory", "can't allocate memory", "bad_alloc")
    )


def _give_back(device: torch.device) -> None:
    """Hand what nobody holds any more to whoever asks next."""
    winograd.let_go()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    else:
        _trim()


def _trim() -> None:
    """Give freed memory that the C library keeps back to the system: glibc has a function for it, others keep less."""
    if os.name == "posix" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def _where(device: torch.device) -> str:
    return "the machine" if device.type == "cpu" else f"the GPU ({device})"


# ---------------------------------------------------------------------------- what is free, and what a batch took


def _free_bytes(device: torch.device) -> int:
    """On a GPU what is free or held by torch's cache; on the CPU what can be had without swapping, within the container."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    return int(min(psutil.virtual_memory().available, _container_bytes(_CGROUP)))


def _container_bytes(cgroup: Path) -> float:
    """What a container's limit leaves (cgroup v2), infinite without one. Cached files can be dropped and are free."""
    try:
        limit, used = (cgroup / "memory.max").read_text().strip(), int((cgroup / "memory.current").read_text())
        files = [line.split()[1] for line in (cgroup / "memory.stat").open() if line.startswith("inactive_file ")]
    except OSError:
        return float("inf")
    return float("inf") if limit == "max" else max(0, int(limit) - used + sum(map(int, files)))


class _Peak:
    """The most memory that was taken while something ran, beyond what was taken before."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.bytes = device, 0

    @contextmanager
    def watched(self) -> Iterator[None]:
        if self.device.type == "cuda":
            before = torch.cuda.memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            yield
            self.bytes = torch.cuda.max_memory_allocated(self.device) - before
            return
        over, process = threading.Event(), psutil.Process()
        before = process.memory_info().rss

        def look() -> None:
            while not over.wait(LOOK_S):
                self.bytes = max(self.bytes, process.memory_info().rss - before)

        looker = threading.Thread(target=look, name="memory", daemon=True)
        looker.start()
        try:
            yield
        finally:
            over.set()
            looker.join()
        self.bytes = max(self.bytes, process.memory_info().rss - before)
