"""Taking turns at the accelerator: what runs the engine in its own process holds one of as many slots as there are GPUs.

Prefect keeps the slots (a global concurrency limit), so that they count over all machines that its server knows. Where it has no such
limit, as with the embedded server of a single command, nothing waits. Workers of the job table need none: each works at one batch at a
time, and how many of them there are is said by who starts them.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from prefect.client.orchestration import get_client
from prefect.concurrency.asyncio import concurrency

GPU = "onmodel-gpu"


@asynccontextmanager
async def accelerator(*, needed: bool = True) -> AsyncIterator[None]:
    """Within, a GPU is held; it is waited for. A process that dies gives its own back within five minutes."""
    if not needed:
        yield
        return
    async with concurrency(GPU, occupy=1, raise_on_lease_renewal_failure=False):
        yield


Make = Callable[[list[str], int], Awaitable[float]]


def where_it_is_made_here(make: Make) -> Make:
    """Hold a GPU while pictures are made by workers in this process; those elsewhere have their own."""

    @functools.wraps(make)
    async def held(keys: list[str], workers: int) -> float:
        async with accelerator(needed=workers > 0 and bool(keys)):
            return await make(keys, workers)

    return held


async def limit_to(gpus: int) -> None:
    """Have Prefect's server hold so many slots. Safe to repeat."""
    async with get_client() as client:
        await client.upsert_global_concurrency_limit_by_name(GPU, gpus)
