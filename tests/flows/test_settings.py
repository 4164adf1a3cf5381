"""Settings that would not be safe, or not whole."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from flows.settings import OidcSettings, Settings, load_settings, prefect_ui


@pytest.mark.parametrize(
    "wrong",
    [
        {"issuer": "http://id.lumen.example"}, {"issuer": "ftp://id.lumen.example"}, {"issuer": "id.lumen.example"},
        {"issuer": "https://id.lumen.example/?a=b"}, {"issuer": "https://id.lumen.example/#a"}, {"issuer": "https://u:p@id.lumen.example"},
        {"issuer": "http://localhost.evil.example"}, {"client_id": None}, {"client_id": ""}, {"scopes": "email"}, {"admit": "lumen"},
        {"admit": "grace@lumen.example"}, {"admit": "*.example"},
    ],
)  # fmt: skip
def test_settings_that_would_not_be_safe_or_whole_are_refused(wrong: dict[str, Any]) -> None:
    right = {"issuer": "https://id.lumen.example", "client_id": "onmodel"}
    OidcSettings(**right)
    with pytest.raises(ValidationError):
        OidcSettings(**{**right, **wrong})


@pytest.mark.parametrize(
    "issuer", ["http://localhost:1", "http://127.0.0.2:1", "http://[::1]:1", "https://a.example/x"]
)
def test_without_tls_only_this_machine_is_trusted(issuer: str) -> None:
    assert OidcSettings(issuer=issuer, client_id="onmodel").issuer == issuer


def test_an_empty_setting_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ISSUER", "CLIENT_ID", "CLIENT_SECRET", "ADMIT"):
        monkeypatch.setenv(f"ONMODEL_OIDC__{name}", "")
    oidc = Settings().oidc
    assert (oidc.issuer, oidc.client_secret, oidc.domains) == (None, None, frozenset())


@pytest.mark.parametrize(
    ("told", "ui"),
    [
        ({}, None),
        ({"PREFECT_API_URL": "http://prefect:4200/api"}, "http://prefect:4200"),
        ({"PREFECT_API_URL": "http://prefect:4200/v3"}, None),
        ({"PREFECT_API_URL": "http://prefect:4200/api", "PREFECT_UI_URL": "https://ui.example/"}, "https://ui.example"),
        ({"PREFECT_UI_URL": "https://ui.example", "ONMODEL_PREFECT__UI_URL": "https://ours.example"}, "https://ours.example"),
        ({"PREFECT_API_URL": "http://127.0.0.1:1/api", "ONMODEL_PREFECT__UI_URL": ""}, None),
    ],
)  # fmt: skip
def test_prefects_ui_is_where_somebody_said_or_beside_its_api(
    told: dict[str, str], ui: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PREFECT_API_URL", "PREFECT_UI_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert prefect_ui(load_settings()) == ui
