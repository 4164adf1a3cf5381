"""The OpenAPI document against the application: whatever fits it, and what does not, is answered without a fault."""

from __future__ import annotations

from typing import Any

import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.config import GenerationConfig, SchemathesisConfig
from schemathesis.generation import GenerationMode

from asset_store.tables import Role
from studio.api.problems import MEDIA_TYPE
from tests.studio.api.conftest import Door
from tests.studio.api.test_matrix import places  # noqa: F401  (a fixture)

EXAMPLES = 12
ALONE = ("/v1/people/{handle}/disabled", "/v1/keys/{name}")  # would let the caller in no more


def statuses(operation: Any, client: TestClient, places: dict[str, str]) -> set[int]:  # noqa: F811
    """What one operation answers to requests that fit the document and to others, mostly on what there is."""
    seen: set[int] = set()

    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(case=operation.as_strategy(), on_what_there_is=st.sampled_from([True, True, False]))
    def send(case: Any, on_what_there_is: bool) -> None:
        for name in set(places) & set(case.path_parameters or {}) if on_what_there_is else ():
            case.path_parameters[name] = places[name]
        answer = case.call(headers=dict(client.headers), cookies=dict(client.cookies))
        seen.add(answer.status_code)
        missing = answer.status_code == 503 and answer.json()["type"].endswith(
            "BlobMissing"
        )  # as the stories have none
        assert answer.status_code < 500 or missing, (case.as_curl_command(), answer.text)
        if answer.status_code >= 400:
            assert answer.headers["content-type"][0] == MEDIA_TYPE

    send()
    return seen


def test_no_request_is_answered_with_a_fault(door: Door, places: dict[str, str]) -> None:  # noqa: F811
    """As somebody who may do everything, on what there is and on what there is not."""
    config = SchemathesisConfig()
    config.projects.default.generation = GenerationConfig(modes=[GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
    schema = schemathesis.openapi.from_asgi("/v1/openapi.json", door.app, config=config)
    client = door.person("olga", *Role)
    answered: dict[str, set[int]] = {}
    for found in schema.get_all_operations():
        operation = found.ok()
        if not operation.path.startswith("/v1/sessions") and operation.path not in ALONE:
            answered[f"{operation.method.upper()} {operation.path}"] = statuses(operation, client, places)
    assert len(answered) >= 30
    assert sum(1 for codes in answered.values() if any(c < 300 for c in codes)) >= 10, answered


def test_the_document_tells_what_a_program_has_to_know(door: Door) -> None:
    document = door.app.openapi()
    assert "Bearer" in document["info"]["description"]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation.get("description"), (method, path)
            assert {"401", "403", "404", "422"} <= operation["responses"].keys(), (method, path)
    assert document["components"]["schemas"]["DecisionIn"]["examples"]
