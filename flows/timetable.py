"""When a campaign runs: a cron line or an interval in a time zone, also where summer time begins and ends. Loads no engine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from itertools import islice, pairwise
from typing import Annotated, Literal
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from flows.brief_fields import Part

UNITS = {
    "minute": timedelta(minutes=1),
    "hour": timedelta(hours=1),
    "day": timedelta(days=1),
    "week": timedelta(weeks=1),
}
LONGEST, SHORTEST = timedelta(weeks=520), timedelta(minutes=15)
LOOKED_AT = 200  # times of a cron line that are looked at for how often it runs
NAMES = re.compile(r"\b(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec|mon|tue|wed|thu|fri|sat|sun)\b", re.IGNORECASE)


def _cron(value: str) -> str:
    value = " ".join(value.split())
    if len(value.split(" ")) != 5:
        raise ValueError("write the five fields of a cron line: minute, hour, day, month, weekday")
    if not re.fullmatch(r"[0-9*,/ -]+", NAMES.sub("0", value)):  # what every cron knows, Prefect's as well
        raise ValueError("write a cron line of numbers, names of months and weekdays, *, comma, - and /")
    try:
        CronSim(value, datetime(2026, 1, 1, tzinfo=UTC))
    except CronSimError as error:
        raise ValueError(f"this is no cron line: {str(error).lower()}") from None
    return value


@lru_cache(maxsize=1024)
def _too_often(cron: str) -> bool:
    """By its first times: what comes later is as they are. Kept, as lists and the starter read every schedule there is again and again."""
    found = islice(CronSim(cron, datetime(2026, 1, 1, tzinfo=UTC)), LOOKED_AT)
    return any(later - earlier < SHORTEST for earlier, later in pairwise(found))


def _every(value: str) -> str:
    found = re.fullmatch(r"([1-9]\d{0,4}) (minute|hour|day|week)s?", value)
    if found is None or int(found[1]) * UNITS[found[2]] > LONGEST:
        raise ValueError("write a number and minutes, hours, days or weeks, such as 2 weeks")
    return value


def _zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (KeyError, ValueError, OSError):
        raise ValueError("write a time zone by its name, such as Europe/Berlin") from None
    return value


def _as_text(value: object) -> object:
    """YAML reads 2026-12-01 as a day, and a time with seconds as a time."""
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M") if value.tzinfo is None and value.second == 0 else str(value)
    return value.isoformat() if isinstance(value, date) else value


def _moment(value: str) -> str:
    if not re.fullmatch(r"2[01]\d\d-\d\d-\d\d( \d\d:\d\d)?", value):
        raise ValueError("write a day as YYYY-MM-DD, or a local time as YYYY-MM-DD HH:MM, of the years 2000 to 2199")
    try:
        datetime.fromisoformat(value)
    except ValueError:
        raise ValueError("there is no such day or time") from None
    return value


Moment = Annotated[str, BeforeValidator(_as_text), AfterValidator(_moment)]


class Schedule(Part):
    """When a campaign runs, by the clocks of `time_zone`.

    cron: such as `0 9 * * mon`. Debian's rule where clocks change: a time that is left out runs when the clocks have gone forward, one
    that comes twice runs once.
    every: from `start` on, such as `2 weeks`. Days and weeks keep the time of day, hours and minutes are counted as they pass.
    start, end: a day (the end's is the last one) or a local time.
    if_running: the run before is still going: skip this one, let it wait, or cancel the one before.
    missed: nothing ran when it was time: run the latest that was missed, all, or none.
    """

    cron: Annotated[str, AfterValidator(_cron)] | None = None
    every: Annotated[str, AfterValidator(_every)] | None = None
    time_zone: Annotated[str, Field(max_length=64), AfterValidator(_zone)] = "UTC"
    start: Moment | None = None
    end: Moment | None = None
    if_running: Literal["skip", "wait", "cancel"] = "skip"
    missed: Literal["latest", "all", "none"] = "latest"

    @model_validator(mode="after")
    def _one_rhythm(self) -> Schedule:
        if (self.cron is None) == (self.every is None):
            raise ValueError("give either cron or every")
        if self.every is not None and self.start is None:
            raise ValueError("every counts from start: give it")
        if (self.step is not None and self.step < SHORTEST) or (self.cron is not None and _too_often(self.cron)):
            raise ValueError(f"a campaign runs every {SHORTEST // timedelta(minutes=1)} minutes at most")
        if self.start is not None and self.end is not None and self.last < self.first:
            raise ValueError("it ends before it starts")
        return self

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.time_zone)

    @property
    def step(self) -> timedelta | None:
        """Between two runs of `every`, as clocks show it for days and weeks."""
        if self.every is None:
            return None
        number, unit = self.every.split(" ")
        return int(number) * UNITS[unit.removesuffix("s")]

    @property
    def keeps_time_of_day(self) -> bool:
        """Whether it runs at most once a day, at one time of the day."""
        if self.cron is not None:
            minute, hour = self.cron.split(" ")[:2]
            return minute.isdigit() and hour.isdigit()
        return self.every is not None and self.every.split(" ")[1].startswith(("day", "week"))

    @property
    def first(self) -> datetime:
        """The first moment at which it may run, in UTC."""
        return datetime.min.replace(tzinfo=UTC) if self.start is None else _passing(_naive(self.start), self.zone)

    @property
    def last(self) -> datetime:
        """The last moment at which it may run, in UTC."""
        if self.end is None:
            return datetime.max.replace(tzinfo=UTC)
        end = _naive(self.end)
        if " " not in self.end:
            return _passing(end + timedelta(days=1), self.zone) - timedelta(seconds=1)
        return _passing(end, self.zone)

    def after(self, moment: datetime) -> Iterator[datetime]:
        """When it runs after a moment, in order, with the offset that its time zone has then."""
        for found in self._by_cron(moment) if self.cron is not None else self._by_interval(moment):
            if found > self.last:
                return
            if found > moment and found >= self.first:
                yield found.astimezone(self.zone)

    def next_after(self, moment: datetime) -> datetime | None:
        return next(self.after(moment), None)

    @property
    def told(self) -> str:
        """In words, such as `At 09:00 on Monday, Europe/Berlin`."""
        rhythm = f"every {self.every}" if self.cron is None else CronSim(self.cron, datetime.now(UTC)).explain()
        bounds = (f", from {self.start}" if self.start else "") + (f", until {self.end}" if self.end else "")
        return f"{rhythm[:1].lower()}{rhythm[1:]}, {self.time_zone}{bounds}"

    def name_of(self, moment: datetime) -> str:
        """What sets one run's campaign apart from the others': its day, where it runs more than once a day with the time."""
        local = moment.astimezone(self.zone)
        if self.keeps_time_of_day:
            return local.strftime("%Y-%m-%d")
        return local.strftime("%Y-%m-%d-%H%M") + ("-2" if local.fold else "")

    def _by_cron(self, moment: datetime) -> Iterator[datetime]:
        assert self.cron is not None
        begin = moment if self.start is None else max(moment, self.first - timedelta(minutes=1))
        for found in CronSim(self.cron, begin.astimezone(self.zone)):
            yield found.astimezone(UTC)

    def _by_interval(self, moment: datetime) -> Iterator[datetime]:
        assert self.start is not None
        assert self.step is not None
        start, step = _naive(self.start), self.step
        if self.keeps_time_of_day:
            passed = moment.astimezone(self.zone).replace(tzinfo=None) - start
            count = max(0, passed // step - 1)  # one before, as the clocks may have been changed since
            while True:
                yield _passing(start + count * step, self.zone)
                count += 1
        first = _passing(start, self.zone)
        count = max(0, (moment - first) // step)
        while True:
            yield first + count * step
            count += 1


def _naive(moment: str) -> datetime:
    return datetime.fromisoformat(moment)


def _passing(local: datetime, zone: ZoneInfo) -> datetime:
    """A local time in UTC: one that is left out when clocks go forward is so much later, of one that comes twice it is the first."""
    return local.replace(tzinfo=zone).astimezone(UTC)
