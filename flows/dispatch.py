"""Starts flows by deployment name, wherever they are served. Imports neither torch nor the engine."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

INGEST = "ingest-library/onmodel"
CAMPAIGN = "make-campaign/onmodel"
ACT = "act-on-schedule/onmodel"
SHEET = "make-character-sheet/onmodel"
RELEASE = "release-assets/onmodel"


def start(deployment: str, parameters: dict[str, Any], *, idempotency_key: str | None = None) -> UUID:
    """Start a run and return its id without waiting; the same idempotency key starts it once."""
    from prefect.deployments import run_deployment

    async def begin() -> UUID:
        run = await run_deployment(  # type: ignore[misc]
            name=deployment, parameters=parameters, timeout=0, idempotency_key=idempotency_key
        )
        return UUID(str(run.id))

    return asyncio.run(begin())
