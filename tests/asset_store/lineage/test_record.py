"""What a lineage record must say."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from asset_store.errors import LineageIncomplete
from asset_store.lineage.record import REQUIRED, incomplete, verify_chain, write
from asset_store.tables import Descent, LineageRecord
from tests.stories import a_record, a_reference, an_asset


def complete(session: Session) -> dict[str, Any]:
    asset = an_asset(session, record=False)
    assert asset.current is not None
    return a_record(asset.current, asset, [a_reference(session)])


def test_every_field_is_asked_for(session: Session) -> None:
    whole = complete(session)
    assert incomplete(whole) == []
    assert len(incomplete({})) == len(REQUIRED)
    for section, keys in REQUIRED.items():
        without = {name: value for name, value in whole.items() if name != section}
        assert incomplete(without) == [section]
        for key in keys:
            for nothing in (None, ""):
                record = copy.deepcopy(whole)
                item = record[section][0] if isinstance(record[section], list) else record[section]
                item[key] = nothing
                at = f"{section}[0].{key}" if isinstance(record[section], list) else f"{section}.{key}"
                assert incomplete(record) == ([] if (at, nothing) == ("settings.prompt", "") else [at])


def test_a_picture_has_models_but_may_have_no_references(session: Session) -> None:
    whole = complete(session)
    assert incomplete({**whole, "references": []}) == []
    assert incomplete({**whole, "models": []}) == ["models"]
    assert incomplete({**whole, "models": ["unet"]}) == ["models[0]"]
    assert incomplete({**whole, "references": None}) == ["references"]


def test_zero_is_a_value(session: Session) -> None:
    whole = complete(session)
    whole["settings"].update(seed=0, guidance=0.0, scale=0)
    assert incomplete(whole) == []


def test_records_are_chained_and_indexed(session: Session) -> None:
    references = [a_reference(session, "a.png"), a_reference(session, "b.png")]
    asset = an_asset(session, references=references)
    an_asset(session, references=references[:1])
    first, second = session.scalars(select(LineageRecord).order_by(LineageRecord.seq)).all()
    assert (first.previous_sha256, second.previous_sha256) == ("0" * 64, first.sha256)
    assert asset.current is not None
    descents = session.scalars(select(Descent.reference_id).where(Descent.version_id == asset.current.id))
    assert set(descents) == {reference.id for reference in references}
    session.expire_all()
    assert (verify_chain(session).rows, verify_chain(session).ok) == (2, True)


def test_a_record_of_something_else_is_not_written(session: Session) -> None:
    asset, reference = an_asset(session, record=False), a_reference(session)
    version = asset.current
    assert version is not None
    whole = a_record(version, asset, [reference])
    with pytest.raises(LineageIncomplete, match=r"settings\.seed"):
        write(session, version.id, {**whole, "settings": {**whole["settings"], "seed": None}}, [reference.id])
    with pytest.raises(LineageIncomplete, match="its picture"):
        write(session, version.id, {**whole, "output": {**whole["output"], "sha256": "0" * 64}}, [reference.id])
    with pytest.raises(LineageIncomplete, match="references as they were used"):
        write(session, version.id, whole, [])
    with pytest.raises(ValueError, match="no JSON form"):
        write(session, version.id, {**whole, "settings": {**whole["settings"], "scale": math.nan}}, [reference.id])
    assert session.scalars(select(LineageRecord)).all() == []
    write(session, version.id, whole, [reference.id])
    with pytest.raises(IntegrityError):
        write(session, version.id, whole, [reference.id])
