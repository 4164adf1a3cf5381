"""The way from a flow run in Prefect's UI to the run's own page."""

from __future__ import annotations

import uuid

from prefect.artifacts import acreate_link_artifact

from flows.settings import load_settings


async def link_to_page(run_id: uuid.UUID) -> None:
    """Have the flow run show a link to the run's page, where the settings say what that is at."""
    if address := load_settings().telling.address:
        page = f"{address.rstrip('/')}/runs/{run_id}"
        await acreate_link_artifact(page, link_text=f"Run {run_id}", key="run-page", description="The run in Onmodel")
