"""Two people deciding at the same moment, on connections of their own."""

from __future__ import annotations

import threading
import uuid

import pytest

from asset_store.database import Database
from asset_store.errors import OnmodelError, StaleVersion, TransitionRefused
from asset_store.reviewing import decide
from asset_store.tables import Asset, Decision, Verdict
from tests.stories import a_campaign, an_asset_in_review, picture_of


@pytest.mark.parametrize("with_row_version", [True, False])
@pytest.mark.parametrize("verdicts", [(Verdict.APPROVE, Verdict.REJECT), (Verdict.APPROVE, Verdict.APPROVE)])
def test_one_decides_and_the_other_is_told(
    own_database: Database, verdicts: tuple[Verdict, Verdict], with_row_version: bool
) -> None:
    with own_database.transaction() as session:
        asset = an_asset_in_review(session, a_campaign(session, stages=["brand"]))
        id_, seen, row_version = asset.id, picture_of(asset), asset.row_version
    together = threading.Barrier(2)
    refused: list[OnmodelError] = []

    def say(verdict: Verdict, by: str) -> None:
        together.wait()
        try:
            with own_database.transaction() as own:
                decide.decide(own, id_, verdict, by, "a reason", seen, row_version if with_row_version else None)
        except (StaleVersion, TransitionRefused) as error:
            refused.append(error)

    people = [threading.Thread(target=say, args=(v, by)) for v, by in zip(verdicts, ("grace", "hedy"), strict=True)]
    for person in people:
        person.start()
    for person in people:
        person.join(30)
    assert len(refused) == 1
    assert decisions(own_database, id_) == 1


def decisions(database: Database, asset_id: uuid.UUID) -> int:
    with database.transaction() as session:
        asset = session.get_one(Asset, asset_id)
        assert asset.current is not None
        return session.query(Decision).where(Decision.version_id == asset.current.id).count()
