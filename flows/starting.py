"""Everything that starts work goes through here, whoever asks: terminal, API, page, schedule or agent. Loads no engine."""

from __future__ import annotations

import logging
from collections.abc import Callable
from uuid import UUID

from sqlalchemy.orm import Session

from asset_store.repositories import libraries, runs
from asset_store.repositories.runs import Quota, Wanted
from asset_store.tables import Run, RunKind
from flows import dispatch
from flows.repeating import Repeating
from flows.settings import QuotaSettings, prefect_api
from flows.sheet_request import SheetRequest
from flows.wiring import Store

log = logging.getLogger("onmodel.starting")
DEPLOYMENTS = {RunKind.SHEET: dispatch.SHEET}
TERMINAL = "cli"


def start_sheet(
    session: Session, request: SheetRequest, quota: QuotaSettings, *, by: str, trigger: str, sent: bool = False
) -> Run:
    """Write a character sheet down to be made; sent: the caller carries it itself. NotFound; QuotaSpent."""
    brand = libraries.get_brand(session, request.brand)
    libraries.get_character(session, brand, request.character)
    wanted = Wanted(
        RunKind.SHEET, brand, request.model_dump(mode="json"), len(request.cells), by, request.reason.strip(), trigger
    )
    most = Quota() if trigger == TERMINAL else Quota(quota.brand, quota.asker)
    return runs.begin(session, wanted, most, sent=sent)


Send = Callable[[str, UUID, int], object]


def send(deployment: str, run_id: UUID, sent: int) -> object:
    """Start the flow of a run at Prefect's server; the same again starts it once."""
    return dispatch.start(deployment, {"run_id": str(run_id)}, idempotency_key=f"run/{run_id}/{sent}")


def start_one(store: Store, send: Send = send) -> bool:
    """Start a flow for one run that none carries; whether there was one. Where Prefect is away it is tried again later."""
    with store.database.transaction() as session:
        taken = runs.take(session)
        if taken is None:
            return False
        run, before = taken
        run_id, deployment, sent = run.id, DEPLOYMENTS[run.kind], run.sent
    try:
        send(deployment, run_id, sent)
    except Exception:  # what was not started is started later
        log.exception("run %s could not be started", run_id)
        with store.database.transaction() as session:
            runs.unsend(session, run_id, before)
        return False
    return True


class Starter(Repeating):
    """Starts what was asked for until it is stopped. Several may run: each run is started by one."""

    def __init__(self, store: Store) -> None:
        super().__init__("starter")
        self.store = store

    def step(self) -> bool:
        return prefect_api() is not None and start_one(self.store)
