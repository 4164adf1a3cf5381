"""Batches by the memory that they take: sized by what others took, halved where one did not fit."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from ipadapter_engine import memory
from ipadapter_engine.errors import GenerationFailed
from ipadapter_engine.memory import BatchBudget, MemoryBudget, in_batches, out_of_memory

MIB = 1 << 20
PIXELS = 64 * 64


def budget_of(limit_mib: int, *, most: int = 16, pixels: int = PIXELS) -> BatchBudget:
    return MemoryBudget("cpu", limit_bytes=limit_mib * MIB).of("a key", most=most, pixels=pixels)


def test_a_first_batch_is_sized_by_its_pixels() -> None:
    row = PIXELS * memory.FIRST_BYTES_A_PIXEL // MIB
    assert budget_of(row * 4).rows() == 4
    assert budget_of(row * 400).rows() == 16  # `most`
    assert budget_of(1).rows() == 1


def test_a_batch_is_sized_by_what_one_of_its_kind_took() -> None:
    budget = budget_of(100)
    budget.took(4, 40 * MIB)
    assert budget.rows() == 10


def test_what_a_batch_takes_whatever_its_rows_is_told_from_what_each_row_takes() -> None:
    budget = budget_of(100)
    budget.took(2, 40 * MIB)
    budget.took(4, 50 * MIB)  # 30 and 5 a row
    assert budget.rows() == 14


def test_measurements_that_contradict_each_other_never_promise_endless_rows() -> None:
    budget = budget_of(100, most=1000)
    budget.took(2, 40 * MIB)
    budget.took(8, 30 * MIB)
    assert 1 <= budget.rows() < 1000


def test_a_kind_that_is_not_known_is_taken_for_as_greedy_as_the_greediest() -> None:
    shared = MemoryBudget("cpu", limit_bytes=100 * MIB)
    shared.of("small", most=16, pixels=1000).took(1, 5 * MIB)
    assert shared.of("large", most=16, pixels=4000).rows() == 5


def test_a_key_is_remembered() -> None:
    shared = MemoryBudget("cpu", limit_bytes=100 * MIB)
    shared.of("a", most=16, pixels=PIXELS).took(1, 50 * MIB)
    assert shared.of("a", most=16, pixels=PIXELS).rows() == 2
    assert shared.of("a", most=1, pixels=PIXELS).rows() == 1


def test_more_is_tried_again_when_batches_have_fitted_for_a_while() -> None:
    budget = budget_of(10_000)
    budget.did_not_fit(16)
    assert budget.rows() == 8
    for _ in range(memory.TRIED_AGAIN_AFTER):
        budget.took(8, MIB)
    assert budget.rows() == 16


def test_rows_are_made_once_each_and_in_their_order() -> None:
    batches: list[list[int]] = []

    def make(rows: Sequence[int]) -> list[str]:
        batches.append(list(rows))
        return [str(r) for r in rows]

    budget = budget_of(10_000, most=4)
    assert in_batches(range(10), make, budget) == [str(i) for i in range(10)]
    assert batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert in_batches([], make, budget) == []


def test_a_batch_that_runs_out_of_memory_is_made_by_halves() -> None:
    sizes: list[int] = []

    def make(rows: Sequence[int]) -> list[int]:
        sizes.append(len(rows))
        if len(rows) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return list(rows)

    assert in_batches(range(8), make, budget_of(10_000, most=8)) == list(range(8))
    assert sizes == [8, 4, 2, 2, 2, 2]


def test_one_row_that_does_not_fit_says_what_to_do() -> None:
    def make(rows: Sequence[int]) -> list[int]:
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes.")

    with pytest.raises(GenerationFailed, match="one picture alone: .*tried to allocate 9 bytes") as caught:
        in_batches(range(8), make, budget_of(10_000))
    assert "smaller picture" in caught.value.next_step


def test_an_error_of_another_kind_passes() -> None:
    def make(rows: Sequence[int]) -> list[int]:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        in_batches([1], make, budget_of(10_000))


def test_what_a_batch_took_is_measured() -> None:
    def make(rows: Sequence[int]) -> list[int]:
        block = torch.ones(64 * MIB, dtype=torch.uint8)
        time.sleep(10 * memory.LOOK_S)
        del block
        return list(rows)

    freed = [torch.ones(MIB // 10, dtype=torch.uint8) for _ in range(1000)]  # small enough to be kept by the C library
    del freed[:-1]  # the last one lies above the others
    budget = budget_of(10_000)
    in_batches([1], make, budget)
    (peak,) = budget.learned.peaks.values()
    assert 60 * MIB <= peak <= 200 * MIB


def test_a_containers_limit_counts(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 150\n")
    assert memory._container_bytes(tmp_path) == 450
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._container_bytes(tmp_path) == memory._container_bytes(tmp_path / "none") == float("inf")


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("std::bad_alloc"), torch.OutOfMemoryError("x")])
def test_every_allocators_words_are_understood(error: Exception) -> None:
    assert out_of_memory(error)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is kept by Linux alone")
def test_a_real_shortage_halves_the_batch_and_leaves_no_memory_behind(tmp_path: Path) -> None:
    """A process that may address 700 MiB more than it does makes rows of 100 MiB each."""
    script = tmp_path / "rows.py"
    script.write_text(
        textwrap.dedent("""
        import resource, sys
        import psutil, torch
        from ipadapter_engine.errors import GenerationFailed
        from ipadapter_engine.memory import MemoryBudget, in_batches

        MIB = 1 << 20
        torch.ones(8).sum()
        resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 700 * MIB,) * 2)
        tried = []

        def make(rows):
            tried.append(len(rows))
            held = [torch.ones(rows[0] * MIB, dtype=torch.uint8) for _ in rows]
            return [int(block[-1]) for block in held]

        budget = MemoryBudget("cpu").of("rows", most=16, pixels=1)
        assert in_batches([100] * 16, make, budget) == [1] * 16
        print(*tried)
        try:
            in_batches([900], make, budget)
        except GenerationFailed as error:
            print(error.message)
        """)
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, cwd=root, timeout=250,
        env={"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    tried, told = done.stdout.splitlines()
    assert tried == "16 8 4 4 4 4"
    assert "ran out of memory on one picture alone" in told
