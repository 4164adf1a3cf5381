"""Canonical JSON: one value, one string, also after PostgreSQL kept it."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import literal, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from asset_store.canonical import canonical_json, sha256_of

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=10)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
VALUES = st.recursive(SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(TEXT, v, max_size=3), max_leaves=12)


def test_keys_are_sorted_spaces_left_out_and_letters_kept() -> None:
    assert canonical_json({"b": [1, 2.5, None], "a": "é"}) == '{"a":"é","b":[1,2.5,null]}'.encode()


@pytest.mark.parametrize(
    ("number", "written"),
    [(1.0, b"1"), (-0.0, b"0"), (0.1, b"0.1"), (1e22, b"1" + b"0" * 22), (1e-7, b"1e-07"), (2.50, b"2.5")],
)
def test_a_float_has_one_form(number: float, written: bytes) -> None:
    assert canonical_json(number) == written


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, {"a": [math.nan]}, "\ud800"])
def test_what_has_no_form_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="no JSON form|surrogates"):
        canonical_json(value)


@pytest.mark.parametrize("value", [{1: "a"}, {"a": b"bytes"}, {"a": {1, 2}}, object()])
def test_what_json_does_not_know_is_refused(value: object) -> None:
    with pytest.raises(TypeError):
        canonical_json(value)


@given(VALUES)
def test_it_is_json_and_its_own_canonical_form(value: object) -> None:
    assert canonical_json(json.loads(canonical_json(value))) == canonical_json(value)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=VALUES)
def test_a_hash_survives_the_database(session: Session, value: object) -> None:
    kept = session.scalar(select(literal({"v": value}, JSONB)))
    assert sha256_of(kept) == sha256_of({"v": value})
