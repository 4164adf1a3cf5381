"""What is served to Prefect, and with which calendar."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import pytest
from prefect.deployments import run_deployment

from flows import dispatch
from flows.deployments import deployments
from flows.settings import load_settings
from tests.prefect_server import PrefectServer


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


def schemas() -> dict[str, dict[str, Any]]:
    return {d.flow_name: d._parameter_openapi_schema.model_dump_for_openapi() for d in deployments(load_settings())}


def test_prefect_says_what_each_deployment_does_and_of_which_version(prefect: PrefectServer) -> None:
    for deployment in deployments(load_settings()):
        id_ = deployment.apply()
        (shown,) = prefect.ask("deployments/filter", {"deployments": {"id": {"any_": [str(id_)]}}})
        assert shown["description"] == deployment.description
        assert shown["description"].count(".") >= 1
        assert "Args:" not in shown["description"]
        assert (shown["version"], shown["enforce_parameter_schema"]) == (version("onmodel"), True)
        assert "onmodel" in shown["tags"]


def test_every_parameter_says_what_it_is(prefect: PrefectServer) -> None:
    for flow, schema in schemas().items():
        told = {name: p.get("description", "") for name, p in schema.get("properties", {}).items()}
        assert all(told.values()), (flow, told)


def test_choices_and_bounds_are_offered() -> None:
    found = schemas()
    adapter = found["train-adapter"]["properties"]
    assert (adapter["variant"]["enum"], adapter["crop"]["enum"]) == (["base", "plus"], ["centre", "pad"])
    assert adapter["size_px"]["anyOf"][0] == {"type": "integer", "minimum": 8, "maximum": 4096}
    assert found["release-assets"]["properties"]["asset_ids"]["items"] == {"type": "string", "format": "uuid"}
    assert found["ingest-library"]["properties"]["url"]["minLength"] == 1
    seeds = found["tune-character"]["properties"]["seeds"]
    assert (seeds["minimum"], seeds["maximum"], seeds["default"]) == (1, 32, 2)


@pytest.mark.parametrize(
    ("deployment", "parameters"),
    [
        ("train-adapter/onmodel", {"data": "studio", "out": "/tmp/x", "variant": "extra"}),
        ("train-adapter/onmodel", {"data": "studio", "out": "/tmp/x", "size_px": 4}),
        ("train-adapter/onmodel", {"data": "studio"}),
        ("tune-character/onmodel", {"character": "Pip", "seeds": 99}),
        ("ingest-library/onmodel", {"url": ""}),
        ("release-assets/onmodel", {"asset_ids": 7, "to": "out", "by": "pat"}),
    ],
)
def test_a_parameter_that_cannot_be_is_refused_before_the_run_begins(
    prefect: PrefectServer, deployment: str, parameters: dict[str, Any]
) -> None:
    for served in deployments(load_settings()):
        served.apply()
    before = prefect.ask("flow_runs/count")
    with pytest.raises(
        Exception, match=r"(?i)validation failed|is not valid|required|less than|greater than|too short"
    ):
        run_deployment(deployment, parameters=parameters, timeout=0)
    assert prefect.ask("flow_runs/count") == before
