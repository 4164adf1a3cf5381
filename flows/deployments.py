"""Serves the flows to a Prefect server, with the library's schedule from the settings and those of briefs from the database:

prefect server start &
PREFECT_API_URL=http://127.0.0.1:4200/api python -m flows.deployments
"""

from __future__ import annotations

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

    plan = settings.schedule
    library_calendar = None
    if plan.library and plan.library_cron:
        library_calendar = Cron(plan.library_cron, timezone=plan.time_zone, parameters={"url": plan.library})
    return [
        ingest_library.to_deployment("onmodel", tags=["onmodel", "library"], schedule=library_calendar),
        run_campaign.to_deployment("onmodel", tags=["onmodel", "campaign"]),
        make_campaign.to_deployment("onmodel", tags=["onmodel", "campaign"]),
        act_on_schedule.to_deployment("onmodel", tags=["onmodel", "schedule"]),
        make_character_sheet.to_deployment("onmodel", tags=["onmodel", "sheet"]),
        release_assets.to_deployment("onmodel", tags=["onmodel", "release"]),
        train_character_model.to_deployment("onmodel", tags=["onmodel", "training"]),
        train_adapter_model.to_deployment("onmodel", tags=["onmodel", "training"]),
        sweep.to_deployment("onmodel", tags=["onmodel"], interval=SWEEP_EVERY_S),
    ]


def serve_all() -> None:
    """Serve until stopped; needs PREFECT_API_URL."""
    settings = load_settings()
    configure_prefect(settings, verbose=True)
    from prefect import serve

    with open_store(settings) as store:
        starter = Starter(store)
        starter.start()
        try:
            serve(*deployments(settings))
        finally:
            starter.stop()


if __name__ == "__main__":
    serve_all()
