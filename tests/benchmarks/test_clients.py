"""`make bench-clients` on a small scale: what must not be is not, and what is wrong would be seen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import clients
from benchmarks.client_calls import Seen, _brands
from benchmarks.client_record import Record


def test_few_clients_are_answered_as_they_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("ONMODEL_HOME", "ONMODEL_QUOTA__BRAND", "ONMODEL_QUOTA__ASKER"):
        monkeypatch.setenv(name, "")  # what the benchmark sets is taken back
    clients.main(["--clients", "10", "--seconds", "6", "--assets", "120", "--home", str(tmp_path)])
    rows = {row["name"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    never = [row for row in rows.values() if row["target"] == "= 0"]
    assert len(never) == 7
    assert [row["name"] for row in never if not row["met"]] == []
    assert rows["requests a second, 10 clients"]["value"] > 0


def test_what_is_wrong_is_a_target_that_is_missed() -> None:
    wrong = Seen(
        times_ms={"room": [2000.0]}, faults=["500"], strange=["403"], foreign=["brand-1"], two_runs=["a, b"], let_in=1, not_told=1,
        took_s=1.0,
    )  # fmt: skip
    told = list(clients.rows(wrong, Record(keys=2, least=1, most=2, overspent=3), 50))
    assert [row.name for row in told if row.met] == [
        "requests a second, 50 clients",
        "processor time of the API a request",
    ]
    right = Seen(times_ms={"room": [20.0]}, spent=1, replayed=1, took_s=1.0)
    assert all(row.met for row in clients.rows(right, Record(keys=2, least=1, most=1, overspent=0), 50))


def test_a_brand_is_seen_however_deep_an_answer_names_it() -> None:
    assert _brands({"runs": [{"brand": "a", "sheet": {"brand": "b"}}], "brand": None, "n": [1, "x"]}) == ["a", "b"]
