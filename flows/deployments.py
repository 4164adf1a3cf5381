"""Serves the flows to a Prefect server, with schedules from the settings:

prefect server start &
PREFECT_API_URL=http://127.0.0.1:4200/api python -m flows.deployments
"""

from __future__ import annotations

from typing import Any

from flows.settings import Settings, configure_prefect, load_settings

SWEEP_EVERY_S = 300


def deployments(settings: Settings) -> list[Any]:
    """One deployment a flow, all named `onmodel`; a schedule where the settings give a cron line."""
    from prefect.schedules import Cron

    from flows.campaign import run_campaign
    from flows.character_sheet import make_character_sheet
    from flows.library import ingest_library
    from flows.publish import release_assets
    from flows.sweep import sweep
    from flows.training import train_adapter_model, train_character_model

    plan = settings.schedule
    library_calendar = brief_calendar = None
    if plan.library and plan.library_cron:
        library_calendar = Cron(plan.library_cron, timezone=plan.time_zone, parameters={"url": plan.library})
    if plan.brief and plan.brief_cron:
        text = {"brief": plan.brief.read_text(encoding="utf-8"), "brief_name": plan.brief.name, "trigger": "schedule"}
        brief_calendar = Cron(plan.brief_cron, timezone=plan.time_zone, parameters=text)
    return [
        ingest_library.to_deployment("onmodel", tags=["onmodel", "library"], schedule=library_calendar),
        run_campaign.to_deployment("onmodel", tags=["onmodel", "campaign"], schedule=brief_calendar),
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

    serve(*deployments(settings))


if __name__ == "__main__":
    serve_all()
