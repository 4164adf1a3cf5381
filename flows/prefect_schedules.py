"""Prefect's schedules, made from what the database says: its calendar shows them, its runs act on them. Lost, they are made again."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from asset_store.repositories import schedules
from asset_store.tables import CampaignSchedule
from flows import dispatch
from flows.scheduling import rhythm_of
from flows.timetable import Schedule
from flows.wiring import Store


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What had to be changed at Prefect."""

    made: int
    changed: int
    removed: int


def reconcile(store: Store) -> Reconciled | None:
    """Make the schedules of the deployment what the database says; None while that is not served yet."""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

    with store.database.transaction() as session:
        wanted = {str(row.id): _wanted(row) for row in schedules.schedules(session)}
    with get_client(sync_client=True) as client:
        try:
            deployment = client.read_deployment_by_name(dispatch.ACT).id
        except ObjectNotFound:
            return None
        there = {s.slug or str(s.id): s for s in client.read_deployment_schedules(deployment)}
        missing = {slug: w for slug, w in wanted.items() if slug not in there}
        other = {slug: w for slug, w in wanted.items() if slug in there and not _same(there[slug], w)}
        gone = [s.id for slug, s in there.items() if slug not in wanted]
        for slug, (schedule, active, parameters) in missing.items():
            with suppress(ObjectAlreadyExists):  # another process did it just now
                client.create_deployment_schedules(deployment, [(schedule, active)], parameters=parameters, slug=slug)
        for slug, (schedule, active, parameters) in other.items():
            client.update_deployment_schedule(
                deployment, there[slug].id, active=active, schedule=schedule, parameters=parameters
            )
        for id_ in gone:
            client.delete_deployment_schedule(deployment, id_)
    return Reconciled(len(missing), len(other), len(gone))


Wanted = tuple[Any, bool, dict[str, Any]]


def _wanted(row: CampaignSchedule) -> Wanted:
    active = row.paused_at is None and row.next_at is not None
    return _at_prefect(rhythm_of(row)), active, {"schedule_id": str(row.id), "campaign": f"{row.brand.name}/{row.name}"}


def _at_prefect(rhythm: Schedule) -> Any:
    from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule

    if rhythm.cron is not None:
        return CronSchedule(cron=rhythm.cron, timezone=rhythm.time_zone)
    assert rhythm.step is not None
    return IntervalSchedule(
        interval=rhythm.step, anchor_date=rhythm.first.astimezone(rhythm.zone), timezone=rhythm.time_zone
    )


def _same(there: Any, wanted: Wanted) -> bool:
    schedule, active, parameters = wanted
    return bool(
        there.active == active
        and there.parameters == parameters
        and there.schedule.model_dump(mode="json") == schedule.model_dump(mode="json")
    )
