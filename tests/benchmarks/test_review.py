"""The benchmark's own parts: rows that say what was met, percentiles, and a database that is as it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy import func, select

from asset_store.blobs import open_blobs
from asset_store.database import Database
from asset_store.reviewing import grid, similar
from asset_store.reviewing.grid import Filters
from asset_store.tables import Asset, AssetVersion, CheckOutcome, PictureEmbedding
from benchmarks import many_assets, rows
from flows.settings import Settings
from flows.wiring import Store, engine


@pytest.mark.parametrize(("share", "value"), [(0.5, 3), (0.95, 5), (0.0, 1), (0.2, 1), (0.21, 2)])
def test_percentiles_are_values_that_were_measured(share: float, value: float) -> None:
    assert rows.percentile([5, 1, 4, 2, 3], share) == value


def test_a_row_says_what_it_is_compared_with(capsys: pytest.CaptureFixture[str]) -> None:
    assert not rows.tell(rows.grows("grid", 16.0, "among 1000", 10.0, 1.5, "ms"))
    assert rows.tell(rows.at_most("grid, p95", 50.0, 50.0, "ms"))
    missed, met = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (missed["ratio"], missed["met"], missed["peer"]) == (1.6, False, "among 1000")
    assert (met["value"], met["target"], met["met"]) == (50.0, "<= 50 ms", True)


def test_the_many_assets_are_found_by_what_they_are(
    own_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many_assets, "DRAWN", 3)
    monkeypatch.setattr(many_assets, "PICTURES", 5)
    many_assets._drawn.cache_clear()
    settings = Settings(home=tmp_path)
    store = Store(own_database, open_blobs(str(tmp_path / "blobs")), settings)
    many_assets.seed(store, 260, engine(settings).encoder)
    many_assets._drawn.cache_clear()
    with own_database.transaction() as session:
        count = session.scalar(select(func.count()).select_from(Asset))
        assert count == session.scalar(select(func.count()).select_from(PictureEmbedding)) == 260
        assert session.scalar(select(func.count()).select_from(AssetVersion)) > 260
        shown = grid.tiles(session, Filters(character="hero-0-1"), limit=200).tiles
        assert {tile.character for tile in shown} == {"hero-0-1"}
        failed = grid.tiles(session, Filters(outcome=CheckOutcome.FAIL), limit=200).tiles
        assert failed
        assert all(tile.doubts for tile in failed)
        (newest,) = grid.tiles(session, Filters(), limit=1).tiles
        assert newest.sha256 is not None
        assert store.blobs.get(newest.sha256)[:4] == b"\x89PNG"
        near = similar.like_asset(session, session.get_one(Asset, newest.id), Filters(), 3)
        assert len(near) == 3
