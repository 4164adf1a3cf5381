"""Serves the flows to a Prefect server, with the library's schedule from the settings and those of briefs from the database:

prefect server start &
PREFECT_API_URL=http://127.0.0.1:4200/api python -m flows.deployments
"""

from __future__ import annotations

import asyncio
import inspect
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from flows.settings import Settings, configure_prefect, load_settings
from flows.starter import Starter
from flows.wiring import open_store

SWEEP_EVERY_S = 300


def deployments(settings: Settings) -> list[Any]:
    """One deployment a flow, all named `onmodel`; a schedule where the settings give a cron line. Those of `act-on-schedule` are made by
    `flows.prefect_schedules`."""
    from prefect.schedules import Cron

    from flows.campaign import make_campaign, run_campaign
    from flows.character_sheet import make_character_sheet
    from flows.library import ingest_library
    from flows.publish import release_assets
    from flows.scheduled import act_on_schedule
    from flows.sweep import sweep
    from flows.training import train_adapter_model, train_character_model
    from flows.tuning import tune_character

    plan = settings.schedule
    library_calendar = None
    if plan.library and plan.library_cron:
        library_calendar = Cron(plan.library_cron, timezone=plan.time_zone, parameters={"url": plan.library})
    return [
        _deployed(ingest_library, "library", schedule=library_calendar),
        _deployed(run_campaign, "campaign"),
        _deployed(make_campaign, "campaign"),
        _deployed(act_on_schedule, "schedule", concurrency_limit=2),
        _deployed(make_character_sheet, "sheet"),
        _deployed(release_assets, "release"),
        _deployed(train_character_model, "training"),
        _deployed(train_adapter_model, "training"),
        _deployed(tune_character, "tuning"),
        _deployed(sweep, interval=SWEEP_EVERY_S),
    ]


def _deployed(flow: Any, *tags: str, **more: Any) -> Any:
    """A flow as Prefect's UI shows it: what it does, its parameters with theirs, and the version of this package."""
    about = (inspect.getdoc(flow.fn) or "").partition("\n\nArgs:")[0]
    return flow.to_deployment(
        "onmodel", tags=["onmodel", *tags], description=about, version=_version(), enforce_parameter_schema=True, **more
    )


def _version() -> str:
    try:
        return version("onmodel")
    except PackageNotFoundError:
        return "0"


def serve_all() -> None:
    """Serve until stopped; needs PREFECT_API_URL. As many as there are GPUs use them at once."""
    settings = load_settings()
    configure_prefect(settings, verbose=True)
    from prefect import serve

    from flows.accelerator import limit_to

    asyncio.run(limit_to(settings.engine.gpus))
    with open_store(settings) as store:
        starter = Starter(store)
        starter.start()
        try:
            serve(*deployments(settings))
        finally:
            starter.stop()


if __name__ == "__main__":
    serve_all()
