"""What is told of trained models: as JSON, and as artifacts of the run that trained one."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from PIL import Image
from prefect.artifacts import acreate_image_artifact, acreate_markdown_artifact
from sqlalchemy.orm import Session

from asset_store.repositories import models
from asset_store.rights import licences
from asset_store.tables import TrainedModel
from flows.preview import preview_url
from flows.training_references import today
from flows.wiring import open_store


def told_of(session: Session, model: TrainedModel) -> dict[str, Any]:
    """A model of the ledger as JSON, with what it learnt from and why it may not be used, if so."""
    learnt = models.references_of(session, model)
    problems = [p for r in learnt if (p := licences.problem_of(r, today())) is not None]
    return {
        "id": str(model.id), "kind": model.kind.value, "name": model.name, "version": model.version,
        "sha256": model.sha256, "size_bytes": model.size_bytes, "base": model.base_name,
        "base_sha256": model.base_sha256, "phrase": model.settings.get("phrase"),
        "references": [r.key for r in learnt], "problems": problems, "figures": model.figures,
        "made_by": model.made_by, "made_at": model.made_at.isoformat() if model.made_at else None,
    }  # fmt: skip


def listed() -> list[dict[str, Any]]:
    """Every model of the ledger, as `told_of`."""
    with open_store() as store, store.database.transaction() as session:
        return [told_of(session, m) for m in models.list_models(session)]


async def show(title: str, told: dict[str, Any], folder: Path) -> None:
    """The loss curve and the last sheet as artifacts of the run."""
    from ipadapter_engine.training.loop import read_losses
    from ipadapter_engine.training.sheets import loss_curve

    name = told.get("log", "character")
    losses = await asyncio.to_thread(read_losses, folder, name)
    rows = [
        f"# {title}", "", f"sha256 {told['sha256']}, {told['size_bytes']} bytes, base {told['base']}.", "",
        f"References: {', '.join(told['references']) or 'in the data folder'}.", "", "| Step | Loss |", "|---|---|",
        *[f"| {step} | {loss:.5f} |" for step, loss in losses[:: max(1, len(losses) // 20)]],
    ]  # fmt: skip
    await acreate_markdown_artifact("\n".join(rows), key="training-report", description=f"Training of {title}")
    curve = loss_curve(losses)
    curve.save(folder / "loss.png", optimize=True)
    await acreate_image_artifact(preview_url(curve), key="loss-curve", description=f"Loss of {title}")
    sheets = sorted((folder / "sheets").glob(f"{name}-*.png"))
    if sheets:
        with Image.open(sheets[-1]) as sheet:
            await acreate_image_artifact(preview_url(sheet), key="training-sheet", description=f"Sheet of {title}")
