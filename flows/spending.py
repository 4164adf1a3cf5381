"""Holds a campaign's run within its budget: before anything is made, and while it is made."""

from __future__ import annotations

from dataclasses import dataclass
from zoneinfo import ZoneInfo

from sqlalchemy.orm import Session

from asset_store.errors import BudgetSpent
from asset_store.repositories import runs, schedules
from asset_store.repositories.runs import Spent
from asset_store.tables import Run, RunState
from flows.brief import Brief
from flows.budget import Budget, excess
from flows.planning import CampaignPlan


@dataclass(frozen=True, slots=True)
class Purse:
    """A run's budget, and the time zone in which its days begin."""

    budget: Budget
    zone: ZoneInfo

    @classmethod
    def of(cls, asked: Brief) -> Purse | None:
        zone = ZoneInfo("UTC") if asked.schedule is None else asked.schedule.zone
        return None if asked.budget is None else cls(asked.budget, zone)

    def check_plan(self, session: Session, run: Run, plan: CampaignPlan) -> None:
        """BudgetSpent where the pictures that a run would make are more than its budget has left, or by what past ones took their time is.
        What a run that was killed had made is its own, too."""
        spent = self._spent_by_others(session, run)
        cost_s = (plan.seconds_a_picture or 0.0) * plan.to_draw
        pictures = spent.pictures + run.made_pictures + plan.to_make
        more = excess(self.budget, pictures, spent.gpu_s + run.gpu_s + cost_s)
        if more is not None:
            raise BudgetSpent(more, self.budget.told, plan.to_make)

    def look(self, session: Session, run: Run) -> None:
        """End a run whose pictures took more of the engine's time than there was: what is made is kept, the rest is not made."""
        most = self.budget.gpu_seconds
        if most is None or run.done >= run.total or self._spent_by_others(session, run).gpu_s + run.gpu_s < most:
            return
        runs.end(
            session, run.id, RunState.FAILED,
            problem=f"stopped: the GPU seconds of its budget ({self.budget.told}) are spent; {run.done} of {run.total} pictures were made",
        )  # fmt: skip

    def _spent_by_others(self, session: Session, run: Run) -> Spent:
        """What the other runs of the schedule have used within the period."""
        if run.schedule_id is None or run.due_at is None or self.budget.per == "run":
            return Spent(0, 0.0)
        return schedules.spent(session, run.schedule_id, self.budget.since(run.due_at, self.zone), but=run.id)
