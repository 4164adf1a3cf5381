"""What a campaign may use: pictures, and seconds of the engine. Loads no engine."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

from pydantic import Field, model_validator

from flows.brief_fields import Number, Part, Whole

BEGINNING = datetime.min.replace(tzinfo=UTC)


class Budget(Part):
    """Of each run, or of all runs of a schedule within a day, a week from Monday, a month, or altogether.

    pictures: that are made anew; one that is there already costs nothing. gpu_seconds: that the engine works, on whatever it runs.
    """

    pictures: Whole | None = Field(None, ge=1)
    gpu_seconds: Number | None = Field(None, gt=0)
    per: Literal["run", "day", "week", "month", "schedule"] = "run"

    @model_validator(mode="after")
    def _of_something(self) -> Budget:
        if self.pictures is None and self.gpu_seconds is None:
            raise ValueError("give pictures, gpu_seconds or both")
        return self

    def since(self, moment: datetime, zone: ZoneInfo) -> datetime:
        """When the period began that a moment lies in, in UTC; the beginning of time where it is all of a schedule."""
        day = moment.astimezone(zone).replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
        if self.per == "schedule":
            return BEGINNING
        if self.per == "week":
            day -= timedelta(days=day.weekday())
        elif self.per == "month":
            day = day.replace(day=1)
        elif self.per == "run":
            return moment
        return day.astimezone(UTC)

    @property
    def told(self) -> str:
        """In words, such as `40 pictures and 600 GPU seconds a week`."""
        parts = [f"{self.pictures} pictures"] if self.pictures is not None else []
        parts += [f"{self.gpu_seconds:g} GPU seconds"] if self.gpu_seconds is not None else []
        return " and ".join(parts) + (" in all" if self.per == "schedule" else f" a {self.per}")


def excess(budget: Budget, pictures: int, gpu_s: float) -> str | None:
    """What of a budget so much is more than, in words; None where it is within."""
    if budget.pictures is not None and pictures > budget.pictures:
        return f"{pictures} of {budget.pictures} pictures"
    if budget.gpu_seconds is not None and gpu_s > budget.gpu_seconds:
        return f"{gpu_s:.1f} of {budget.gpu_seconds:g} GPU seconds"
    return None
