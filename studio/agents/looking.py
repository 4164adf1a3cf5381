"""Tools that look at what was made, and at where it came from."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Annotated
from uuid import UUID

from mcp.types import CallToolResult
from pydantic import Field

from studio.agents.finding import MOST_SHOWN, Brand
from studio.agents.telling import (
    WEBP,
    AssetSeen,
    AssetTold,
    LineageTold,
    Remark,
    Results,
    RunTold,
    SheetTold,
    lineage_version,
    shrunk,
    with_pictures,
)
from studio.client import Asset, Client, ClientError, Run

LATEST_REMARKS = 50


def look_at_results(
    client: Client,
    run_id: Annotated[UUID | None, Field(description="Of this run.")] = None,
    campaign: Annotated[str | None, Field(max_length=200, description="Of this campaign, by its name.")] = None,
    brand: Brand = None,
    review: Annotated[str | None, Field(description="Only in this state, such as `in review` or `approved`.")] = None,
    limit: Annotated[int, Field(ge=1, le=50)] = 12,
    pictures: Annotated[int, Field(ge=0, le=MOST_SHOWN, description="So many of them as small pictures.")] = 4,
) -> Annotated[CallToolResult, Results]:
    """What a run or a campaign made, with each asset's review state and the checks that it did not pass, and small pictures of the first
    ones; of a character sheet first the sheet. Use it when get_run says that the run is over, or while it goes on for what is
    made already. Give `run_id` or `campaign`."""
    if (run_id is None) == (campaign is None):
        raise ClientError("give `run_id` or `campaign`, one of them", "list_runs names runs.")
    run = None if run_id is None else client.run(run_id)
    if run is not None:
        campaign, brand = _campaign_of(client, run), run.brand
    found = (
        []
        if campaign is None
        else list(islice(client.assets(campaign=campaign, brand=brand, review=review), limit + 1))
    )
    told = Results(
        run=run and RunTold.of(run), sheet=SheetTold.of(run.sheet) if run and run.sheet else None,
        assets=[AssetTold.of(a) for a in found[:limit]], more=len(found) > limit,
    )  # fmt: skip
    return with_pictures(told, _pictures(client, run, found[:limit], pictures))


def look_at_asset(client: Client, asset_id: UUID) -> Annotated[CallToolResult, AssetSeen]:
    """One picture up to 1024 px, with its review state, what its checks doubt, who is asked to decide and what people said of it. Use it
    before you judge a picture or say something of it."""
    asset = client.asset(asset_id)
    remarks = client.comments(asset_id)[-LATEST_REMARKS:]
    told = AssetSeen(
        asset=AssetTold.of(asset), comments=[Remark(by=c.by, version=c.version, text=c.text) for c in remarks],
        asked=[f"{a.person} at {a.stage}" for a in client.assignments(asset_id)],
    )  # fmt: skip
    now = asset.current
    return with_pictures(
        told, [] if now is None else [(f"asset {asset.id}", shrunk(client.picture(asset.id, now.sha256)), WEBP)]
    )


def read_lineage(
    client: Client,
    asset_id: UUID,
    all_versions: Annotated[bool, Field(description="Also of its earlier versions.")] = False,
) -> LineageTold:
    """Where a picture came from: its references with their licences, the models by their hashes, prompt and settings, who asked for it
    and why, checks, decisions and deliveries. Use it to answer how a picture was made or whether a reference is in it."""
    tree = client.lineage(asset_id)
    told = tree.model_dump(include=set(LineageTold.model_fields) - {"versions"})
    versions = tree.versions if all_versions else tree.versions[:1]
    return LineageTold.model_validate({**told, "versions": [lineage_version(v) for v in versions]})


def _campaign_of(client: Client, run: Run) -> str | None:
    """The name of the campaign that a run makes; None before it is planned."""
    if run.campaign_id is None:
        return None
    return next((c.name for c in client.campaigns(brand=run.brand) if c.id == run.campaign_id), None)


def _pictures(client: Client, run: Run | None, assets: list[Asset], most: int) -> Iterator[tuple[str, bytes, str]]:
    if most and run is not None and run.sheet is not None and "png" in run.sheet.files:
        yield f"sheet of run {run.id}", shrunk(client.sheet(run.id, "png")), WEBP
    for asset in islice((a for a in assets if a.current is not None), most):
        assert asset.current is not None
        yield f"asset {asset.id}", client.thumbnail(asset.id, asset.current.sha256), WEBP
