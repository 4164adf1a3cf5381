"""When a failed task is worth another try."""

from __future__ import annotations

from typing import Any

from asset_store.errors import (
    BlobStoreUnreachable,
    DatabaseUnreachable,
    OnmodelError,
    SourceUnreachable,
)
from ipadapter_engine.errors import EngineError

_PASSING = (BlobStoreUnreachable, DatabaseUnreachable, SourceUnreachable)


async def if_it_may_pass(task: Any, run: Any, state: Any) -> bool:
    """Prefect's `retry_condition_fn`: what is unreachable may come back; what was refused is refused again."""
    error = await state.aresult(raise_on_failure=False)
    if isinstance(error, _PASSING):
        return True
    return not isinstance(error, OnmodelError | EngineError)
