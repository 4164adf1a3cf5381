"""What is served to Prefect, and with which calendar."""

from __future__ import annotations

import pytest

from flows import dispatch
from flows.deployments import deployments
from flows.settings import load_settings


def test_every_name_that_dispatch_starts_is_served() -> None:
    served = {f"{d.flow_name}/{d.name}" for d in deployments(load_settings())}
    assert {dispatch.INGEST, dispatch.CAMPAIGN, dispatch.SHEET, dispatch.ACT, dispatch.RELEASE} <= served


def test_a_cron_line_in_the_settings_becomes_a_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONMODEL_SCHEDULE__LIBRARY", "s3://bucket/library")
    monkeypatch.setenv("ONMODEL_SCHEDULE__LIBRARY_CRON", "0 3 * * *")
    monkeypatch.setenv("ONMODEL_SCHEDULE__TIME_ZONE", "Europe/Berlin")
    found = {d.flow_name: d for d in deployments(load_settings())}
    library = found["ingest-library"].schedules[0]
    assert (library.schedule.cron, library.schedule.timezone) == ("0 3 * * *", "Europe/Berlin")
    assert library.parameters == {"url": "s3://bucket/library"}
    assert not found["run-campaign"].schedules
    assert not found["release-assets"].schedules
