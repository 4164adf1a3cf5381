"""Holds a campaign's run within its budget: before anything is made, and while it is made."""

from __future__ import annotations

from sqlalchemy.orm import Session

from asset_store.errors import BudgetSpent
from asset_store.repositories import runs, schedules
from asset_store.repositories.schedules import Spent
from asset_store.tables import Run, RunState
from flows.budget import Budget, excess
from flows.planning import CampaignPlan
from flows.starting import asked_of

NOTHING = Spent(0, 0.0)


def check_plan(session: Session, run: Run, plan: CampaignPlan) -> None:
    """BudgetSpent where the pictures that a run would make are more than its budget has left, or by what past ones took their time is. What a
    run that was killed had made is its own, too."""
    budget, spent = _left_of(session, run)
    if budget is None:
        return
    cost_s = (plan.seconds_a_picture or 0.0) * plan.to_draw
    more = excess(budget, spent.pictures + run.made_pictures + plan.to_make, spent.gpu_s + run.gpu_s + cost_s)
    if more is not None:
        raise BudgetSpent(more, budget.told, plan.to_make)


def within_budget(session: Session, run: Run) -> None:
    """End a run whose pictures took more of the engine's time than there was: what is made is kept, the rest is not made."""
    budget, spent = _left_of(session, run)
    if (
        budget is None
        or budget.gpu_seconds is None
        or spent.gpu_s + run.gpu_s < budget.gpu_seconds
        or run.done >= run.total
    ):
        return
    runs.end(
        session, run.id, RunState.FAILED,
        problem=f"stopped: the GPU seconds of its budget ({budget.told}) are spent; {run.done} of {run.total} pictures were made",
    )  # fmt: skip


def _left_of(session: Session, run: Run) -> tuple[Budget | None, Spent]:
    """A run's budget, and what other runs have used of it."""
    asked = asked_of(run.request)
    if asked.budget is None or run.schedule_id is None or run.due_at is None or asked.schedule is None:
        return asked.budget, NOTHING
    if asked.budget.per == "run":
        return asked.budget, NOTHING
    since = asked.budget.since(run.due_at, asked.schedule.zone)
    return asked.budget, schedules.spent(session, run.schedule_id, since, but=run.id)
