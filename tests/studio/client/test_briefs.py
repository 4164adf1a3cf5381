"""Briefs that were built in Python arrive as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from studio.client import ClientError
from studio.client.briefs import brief_text

WORDS = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\ufeff\ufffe\uffff"), max_size=20)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | WORDS
VALUES: st.SearchStrategy[Any] = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4), max_leaves=12
)


@given(st.dictionaries(WORDS, VALUES, max_size=4))
def test_a_mapping_is_read_back_as_it_was(brief: dict[str, Any]) -> None:
    assert yaml.safe_load(brief_text(brief)) == brief


def test_a_file_is_sent_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "brief.yaml"
    file.write_text("campaign: small  # the first\n", encoding="utf-8")
    assert brief_text(file) == brief_text("campaign: small  # the first\n")


@pytest.mark.parametrize("value", [float("nan"), b"bytes", object()])
def test_what_yaml_has_not_is_refused(value: object) -> None:
    with pytest.raises(ClientError):
        brief_text({"scale": value})
