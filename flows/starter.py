"""The thread of `onmodel up` that starts what was asked for, and what the calendar asks for."""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime

from flows.prefect_schedules import reconcile
from flows.repeating import Repeating
from flows.scheduling import act_on_one
from flows.settings import prefect_api
from flows.starting import start_one
from flows.wiring import Store

log = logging.getLogger("onmodel.starter")
RECONCILED_EVERY_S = 10.0


class Starter(Repeating):
    """Starts what was asked for until it is stopped. Several may run: each run, and each time of a schedule, is started by one.

    A schedule is looked at here, too, and not by Prefect's runs alone: what they miss while no server ran is found here.
    """

    def __init__(self, store: Store) -> None:
        super().__init__("starter")
        self.store, self._reconciled_at = store, float("-inf")

    def step(self) -> bool:
        if prefect_api() is None:
            return False
        busy = act_on_one(self.store, datetime.now(UTC))
        busy = start_one(self.store) or busy
        if not busy and time.monotonic() - self._reconciled_at > RECONCILED_EVERY_S:
            self._reconciled_at = time.monotonic()
            reconcile(self.store)
        return busy
