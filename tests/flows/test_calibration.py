"""The identity threshold of a character: by a stated rule, stored in versions, used by the check that says which."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sqlalchemy import select

from asset_store import audit
from asset_store.pictures import open_picture
from asset_store.repositories import libraries
from asset_store.tables import Asset, AssetVersion, Check, Embedding, IdentityThreshold, Reference
from flows.calibration import (
    ENOUGH_REFERENCES,
    FALLBACK_IDENTITY,
    WORST_ERROR,
    balanced,
    calibrate,
    errors,
    find_evidence,
    likenesses,
    store_calibrations,
)
from flows.campaign import run_campaign
from flows.library import ingest_library
from flows.recall import withdraw
from flows.wiring import engine, open_store
from tests.stories import TODAY
from tests.studio_home import SMALL_BRIEF, Home

likeness = st.floats(-1, 1, allow_nan=False, width=32)
some = st.lists(likeness, min_size=1, max_size=30).map(np.array)


@given(some, some, likeness)
@settings(max_examples=300, deadline=None)
def test_no_threshold_has_a_smaller_worst_error(own: np.ndarray, others: np.ndarray, elsewhere: float) -> None:
    groups = [others[::2], others[1::2]] if len(others) > 1 else [others]
    _, rejected, accepted = balanced(own, groups)
    assert (rejected, accepted) == errors(own, groups, balanced(own, groups)[0])
    assert max(rejected, accepted) <= max(errors(own, groups, elsewhere))


@given(st.lists(st.floats(0.61, 0.99), min_size=1, max_size=9), st.lists(st.floats(-0.5, 0.59), min_size=1, max_size=9))
@settings(max_examples=200, deadline=None)
def test_where_there_is_a_gap_the_threshold_lies_a_quarter_up_in_it(own: list[float], others: list[float]) -> None:
    threshold, rejected, accepted = balanced(np.array(own), [np.array(others)])
    assert (rejected, accepted) == (0, 0)
    assert threshold == pytest.approx(max(others) + 0.25 * (min(own) - max(others)))


def test_a_twin_with_few_references_is_not_outvoted_by_many_strangers() -> None:
    own = around([1, 0, 0], 6, 0.05)
    twin, strangers = own[:2], around([0, 1, 0], 48, seed=4)
    mine, theirs = likenesses(own, twin)
    assert errors(mine, [theirs, likenesses(own, strangers)[1]], float(theirs.min()))[1] == 1.0
    found = calibrate(own, {"Twin": twin, "Strangers": strangers})
    assert not found.calibrated
    assert "do not tell it from Twin" in found.told


def test_likeness_leaves_each_own_reference_out() -> None:
    own = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    mine, theirs = likenesses(own, np.array([[0.0, 2.0]]))
    assert mine == pytest.approx([0.5, 0.0, 0.5])
    assert theirs == pytest.approx([1 / 3])


def around(centre: list[float], count: int, spread: float = 0.1, seed: int = 1) -> np.ndarray:
    return np.array(centre) + np.random.default_rng(seed).normal(size=(count, len(centre))) * spread


@pytest.mark.parametrize(
    ("own", "others", "why"),
    [
        (around([1, 0, 0], ENOUGH_REFERENCES - 1), {"Bo": around([0, 1, 0], 4)}, "are needed to calibrate"),
        (around([1, 0, 0], 4), {}, "no other character"),
        (around([1, 0, 0], 8, 0.5), {"Bo": around([1, 0, 0], 8, 0.5, seed=2)}, "do not tell it from Bo"),
    ],
)
def test_what_cannot_be_calibrated_falls_back_and_says_why(
    own: np.ndarray, others: dict[str, np.ndarray], why: str
) -> None:
    found = calibrate(own, others)
    assert (found.threshold, found.calibrated) == (FALLBACK_IDENTITY, False)
    assert why in found.told


def test_the_evidence_holds_both_distributions_and_the_nearest_other() -> None:
    found = calibrate(around([1, 0, 0], 5), {"Bo": around([0, 1, 0], 3), "Mora": around([1, 1, 0], 4)})
    assert found.calibrated
    assert found.evidence["references"] == {"own": 5, "others": {"Bo": 3, "Mora": 4}}
    assert (len(found.evidence["own"]), len(found.evidence["others"]["Mora"])) == (5, 4)
    assert found.evidence["nearest_other"]["character"] == "Mora"
    assert max(found.evidence["false_reject"], found.evidence["false_accept"]) <= WORST_ERROR


def pooled(home: Home, character: str) -> np.ndarray:
    """Unit embeddings (n, d) of a character's active references."""
    with home.database.transaction() as session:
        owner = libraries.find_character(session, character).id
        rows = session.scalars(
            select(Embedding.pooled)
            .join(Reference, Reference.sha256 == Embedding.reference_sha256)
            .where(Reference.character_id == owner, Reference.state == "active", Reference.role == "identity")
        ).all()
    vectors = np.array(rows, dtype=np.float64)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def threshold_by_hand(home: Home, character: str) -> tuple[float, float]:
    """The range in which the rule puts the threshold: every value of the likenesses tried, worst error first."""
    own = pooled(home, character)
    mine = np.array([np.mean([a @ b for j, b in enumerate(own) if j != i]) for i, a in enumerate(own)])
    theirs = [pooled(home, other) @ own.mean(axis=0) for other in ("Bo", "Mora", "Pip", "Tilda") if other != character]
    tried = np.unique(np.concatenate([mine, *theirs, [9.0]]))
    cost = [
        (max((mine < t).mean(), *((o >= t).mean() for o in theirs)),
         (mine < t).mean() + max((o >= t).mean() for o in theirs))
        for t in tried
    ]  # fmt: skip
    place = cost.index(min(cost))
    return float(tried[place - 1]) if place else -1.0, float(tried[place])


@pytest.mark.usefixtures("prefect")
def test_a_campaigns_check_uses_the_stored_version_and_all_own_references_and_says_so(ingested: Home) -> None:
    told = {t["character"]: t for t in store_calibrations(None, brand=None, by="pat")}
    assert set(told) == {"Bo", "Mora", "Pip", "Tilda"}
    low, high = threshold_by_hand(ingested, "Pip")
    assert told["Pip"]["calibrated"]
    assert low - 1e-3 <= told["Pip"]["threshold"] <= high + 1e-3
    assert [t["new"] for t in store_calibrations("Pip", brand="lumen", by="pat")] == [False]
    brief = SMALL_BRIEF.replace("variants: 3", "variants: 1")
    asyncio.run(run_campaign(brief, "brief.yaml", "pat"))
    own = {name: pooled(ingested, name) for name in ("Pip", "Mora")}
    with open_store() as store, ingested.database.transaction() as session:
        encoder = engine(store.settings).encoder
        checks = session.scalars(select(Check).where(Check.name == "identity")).all()
        assert len(checks) == 2
        for check in checks:
            version = session.get_one(AssetVersion, check.version_id)
            name = "Pip" if session.get_one(Asset, version.asset_id).shot == "pip-beach" else "Mora"
            seen = encoder.encode([open_picture(store.blobs.get(version.sha256)).image])[0].pooled
            likeness = float((own[name] @ (seen / np.linalg.norm(seen))).mean())
            assert check.value == pytest.approx(likeness, abs=1e-3)
            assert check.threshold == told[name]["threshold"]
            assert (
                f"to all {len(own[name])} references of its character; threshold version 1 of {name}" in check.message
            )
        assert audit.verify(session).ok


@pytest.mark.usefixtures("prefect")
def test_ended_licences_and_copies_do_not_calibrate(home: Home) -> None:
    with Image.open(home.library / "pip" / "front.png") as front:
        front.resize((front.width * 3 // 4, front.height * 3 // 4)).save(home.library / "pip" / "small.png")
    with (home.library / "library.yaml").open("a") as file:
        file.write("  - {file: pip/small.png, character: Pip, role: identity}\n")
    asyncio.run(ingest_library(str(home.library), "pat"))
    with open_store() as store:
        encoder = engine(store.settings).encoder.sha256

        def own() -> int:
            with store.database.transaction() as session:
                pip = libraries.find_character(session, "Pip")
                evidence = find_evidence(session, store, pip, encoder, TODAY)
            return len(evidence.single())

        assert own() == len(pooled(home, "Pip")) - 1
        with store.database.transaction() as session:
            side = session.scalars(select(Reference).where(Reference.key == "pip/side.png")).one()
            side.licence_until = TODAY.replace(year=2020)
        assert own() == len(pooled(home, "Pip")) - 2


@pytest.mark.usefixtures("prefect")
def test_another_library_gives_another_version_and_the_first_one_stays(ingested: Home) -> None:
    first = ingested.onmodel("calibrate", "--all", "--json")
    assert first.code == 0, first.err
    withdraw("pip/side.png", by="rita", reason="the contract ended")
    (again,) = ingested.onmodel("calibrate", "Pip", "--json").json
    assert (again["version"], again["new"]) == (2, True)
    with ingested.database.transaction() as session:
        pip = libraries.find_character(session, "Pip").id
        rows = session.scalars(select(IdentityThreshold).where(IdentityThreshold.character_id == pip)).all()
    assert sorted(r.version for r in rows) == [1, 2]
    assert ingested.onmodel("calibrate").code == 2
