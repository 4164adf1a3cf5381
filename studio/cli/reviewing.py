"""`onmodel review`: what waits, one asset whole, approve, request changes, reject, waive."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from asset_store.reviewing.comments import Remark
from asset_store.tables import Asset, CheckOutcome, Verdict
from studio.cli.app import By, Json, app
from studio.cli.console import Exit, emit, out, plain, speaking, table

review_app = typer.Typer(no_args_is_help=True, help="Decide on pictures that wait for a person.")
app.add_typer(review_app, name="review")

AssetIds = Annotated[list[str], typer.Argument(help="Assets, by the start of their ids.")]
Reason = Annotated[str, typer.Option("--reason", "-m", help="Why; required unless approving.")]
Stage = Annotated[str | None, typer.Option(help="Only assets at this stage.")]
AtStage = Annotated[str | None, typer.Option("--stage", help="At which stage, where the asset waits at several.")]

MARKS = {CheckOutcome.PASS: "[green]pass[/]", CheckOutcome.WARN: "[yellow]warn[/]",
         CheckOutcome.FAIL: "[red]fail[/]", CheckOutcome.NOT_RUN: "[red]not run[/]"}  # fmt: skip


@review_app.command("list")
def list_(
    campaign: Annotated[str | None, typer.Option(help="Only this campaign.")] = None,
    stage: Stage = None,
    person: Annotated[str | None, typer.Option(help="Only what this person is asked to decide.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 50,
    after: Annotated[str | None, typer.Option(help="The mark that the last page ended with.")] = None,
    json: Json = False,
) -> None:
    """What waits for a decision, the doubtful first."""
    with speaking():
        from asset_store.reviewing.queue import in_review
        from flows.wiring import open_store

        with open_store() as store, store.database.transaction() as session:
            page = in_review(session, campaign=campaign, stage=stage, after=after, limit=limit, person=person)
            rows = [_summary(a) for a in page.assets]
        if json:
            emit({"assets": rows, "next_after": page.next_after})
            return
        if not rows:
            out.print("Nothing waits for review.")
            return
        shown = table("", "Asset", "Campaign", "Shot", "Stage", "Checks")
        for row in rows:
            bad = [f"{c['name']}: {c['outcome']}" for c in row["checks"] if c["outcome"] != CheckOutcome.PASS]
            shown.add_row(row["id"][:8], plain(row["campaign"]), plain(f"{row['shot']} #{row['variant']}"), plain(", ".join(row["waits_at"])),
                          plain(", ".join(bad)) or f"{len(row['checks'])} passed")  # fmt: skip
        out.print(shown)
        if page.next_after:
            out.print(f"[dim]More: --after {page.next_after}[/]")


def _summary(asset: Asset) -> dict[str, Any]:
    version = asset.current
    return {
        "id": str(asset.id),
        "campaign": asset.campaign.name,
        "shot": asset.shot,
        "variant": asset.variant + 1,
        "waits_at": asset.waits_at,
        "due_at": asset.due_at.isoformat() if asset.due_at else None,
        "review": asset.review.value,
        "availability": asset.availability.value,
        "sha256": version.sha256 if version else None,
        "checks": [
            {
                "name": c.name,
                "outcome": c.outcome.value,
                "value": c.value,
                "threshold": c.threshold,
                "message": c.message,
            }
            for c in (version.checks if version else [])
        ],
    }


@review_app.command()
def show(
    asset_id: Annotated[str, typer.Argument(help="An asset, by the start of its id.")],
    save: Annotated[str | None, typer.Option(help="Write the picture to this file.")] = None,
    json: Json = False,
) -> None:
    """One asset: its picture, checks and decisions."""
    with speaking():
        from pathlib import Path

        from asset_store.errors import PictureRemoved
        from asset_store.lineage.tree import tree_of
        from asset_store.reviewing.assigning import assignments_of
        from asset_store.reviewing.comments import remarks_of
        from asset_store.reviewing.queue import find_asset
        from flows.wiring import open_store

        with open_store() as store, store.database.transaction() as session:
            asset = find_asset(session, asset_id)
            tree = tree_of(session, asset).as_json()
            asked = [f"{a.person} at {a.stage}" for a in assignments_of(session, asset.id)]
            remarks = remarks_of(session, asset.id)
            summary = {**_summary(asset), "asked": asked, "comments": [_remark(r) for r in remarks]}
            if save and summary["sha256"]:
                gone = asset.current.removal if asset.current else None
                if gone is not None:
                    raise PictureRemoved(gone.made_at, gone.policy)
                Path(save).write_bytes(store.blobs.get(summary["sha256"]))
        if json:
            emit({**summary, "lineage": tree})
            return
        out.print(
            f"[bold]{plain(summary['campaign'])} / {plain(summary['shot'])} #{summary['variant']}[/]  {summary['id']}"
        )
        out.print(f"review: {plain(summary['review'])}{_waiting(summary)}, {plain(summary['availability'])}")
        if tree["versions"] and (removed := tree["versions"][0]["removed"]):
            out.print(f"picture removed on {removed['at'][:10]} by the retention policy: {plain(removed['policy'])}")
        checks = table("Checks", "Check", "Outcome", "Value", "Threshold", "Finding")
        for c in summary["checks"]:
            checks.add_row(
                plain(c["name"]),
                MARKS[CheckOutcome(c["outcome"])],
                _number(c["value"]),
                _number(c["threshold"]),
                plain(c["message"]),
            )
        out.print(checks)
        decisions = [d for v in tree["versions"] for d in v["decisions"]]
        if decisions:
            said = table("Decisions", "Stage", "Verdict", "By", "Reason", "At")
            for d in decisions:
                said.add_row(plain(d["stage"]), plain(d["verdict"]), plain(d["by"]), plain(d["reason"]), plain(d["at"]))
            out.print(said)
        if remarks:
            words = table("Comments", "Version", "By", "Place", "Says", "At")
            for r in summary["comments"]:
                place = r["region"]["kind"] if r["region"] else ""
                words.add_row(str(r["version"]), plain(r["by"]), place, plain(r["text"]), r["at"])
            out.print(words)
        if asked:
            out.print(f"Asked to decide: {plain(', '.join(asked))}")
        if save:
            out.print(f"Picture written to {plain(save)}")


def _remark(remark: Remark) -> dict[str, Any]:
    return {
        "id": str(remark.id),
        "version": remark.version,
        "by": remark.by,
        "text": remark.text,
        "region": remark.region,
        "at": remark.made_at.isoformat(),
    }


def _waiting(summary: dict[str, Any]) -> str:
    at = f" (waits at {plain(' and '.join(summary['waits_at']))})" if summary["waits_at"] else ""
    return at + (f", due {summary['due_at']}" if summary["due_at"] else "")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _decide(assets: list[str], verdict: Verdict, by: str | None, reason: str, json: bool, stage: str | None) -> None:
    """Each asset stands alone: one that is refused does not hold up the others."""
    with speaking():
        from asset_store.errors import NotFound, StoreError
        from asset_store.reviewing.decide import decide
        from asset_store.reviewing.queue import find_asset
        from flows.wiring import open_store, os_user

        results: list[dict[str, str]] = []
        refusals: list[StoreError] = []
        with open_store() as store:
            for asset_id in assets:
                try:
                    with store.database.transaction() as session:
                        asset = find_asset(session, asset_id)
                        if asset.current is None:
                            raise NotFound(
                                "picture of asset", asset_id, "Run its campaign: the picture is not made yet."
                            )
                        seen = asset.current.sha256
                        decided = decide(session, asset.id, verdict, by or os_user(), reason, seen, stage=stage)
                    results.append({"asset": str(decided.id), "review": decided.review.value, "sha256": seen})
                except StoreError as error:
                    if len(assets) == 1:
                        raise
                    refusals.append(error)
                    results.append({"asset": asset_id, "refused": error.message, "next_step": error.next_step})
        if json:
            emit(results)
        else:
            for r in results:
                if "refused" in r:
                    out.print(
                        f"[red]refused[/] {plain(r['asset'][:8])}: {plain(r['refused'])}\n[dim]→[/] {plain(r['next_step'])}"
                    )
                else:
                    out.print(f"{r['asset'][:8]} is now [bold]{plain(r['review'])}[/]")
        if refusals:
            raise typer.Exit(Exit.FAILED if len(refusals) == len(assets) else Exit.PROBLEMS)


@review_app.command()
def approve(assets: AssetIds, by: By = None, reason: Reason = "", stage: AtStage = None, json: Json = False) -> None:
    """Approve assets at the stage they are in. Who asked for them may not."""
    _decide(assets, Verdict.APPROVE, by, reason, json, stage)


@review_app.command()
def reject(assets: AssetIds, reason: Reason, by: By = None, stage: AtStage = None, json: Json = False) -> None:
    """Reject assets, with a reason."""
    _decide(assets, Verdict.REJECT, by, reason, json, stage)


@review_app.command("request-changes")
def request_changes(assets: AssetIds, reason: Reason, by: By = None, stage: AtStage = None, json: Json = False) -> None:
    """Send assets back, with what to change."""
    _decide(assets, Verdict.REQUEST_CHANGES, by, reason, json, stage)


@review_app.command()
def waive(asset_id: str, reason: Reason, by: By = None, json: Json = False) -> None:
    """Let an asset with a failed check into review, with a reason that stays on record."""
    _back_into_review("waive", asset_id, by, reason, json)


@review_app.command()
def reopen(asset_id: str, reason: Reason, by: By = None, json: Json = False) -> None:
    """Take a decided asset back into review before its release; the old decision stays on record."""
    _back_into_review("reopen", asset_id, by, reason, json)


def _back_into_review(
    event: Literal["waive", "reopen"], asset_id: str, by: str | None, reason: str, json: bool
) -> None:
    with speaking():
        from asset_store.reviewing import decide
        from asset_store.reviewing.queue import find_asset
        from flows.wiring import open_store, os_user

        move = {"waive": decide.waive, "reopen": decide.reopen}[event]
        with open_store() as store, store.database.transaction() as session:
            asset = move(session, find_asset(session, asset_id).id, by or os_user(), reason)
        answer = {"asset": str(asset.id), "review": asset.review.value}
        emit(answer) if json else out.print(f"{str(asset.id)[:8]} is now [bold]{plain(asset.review.value)}[/]")
