"""`onmodel review comment | assign | retake`: what is said of a picture, who is asked, and making it anew."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import typer

from studio.cli.app import By, Json
from studio.cli.console import bars, emit, out, plain, speaking, table
from studio.cli.reviewing import review_app

AssetId = Annotated[str, typer.Argument(help="An asset, by the start of its id.")]
ForStage = Annotated[str, typer.Option("--stage", help="The stage that they are asked to decide at.")]


@review_app.command()
def comment(
    asset_id: AssetId,
    text: Annotated[str, typer.Argument(help="What is to be said.")],
    pin: Annotated[
        str | None, typer.Option(help="Where in the picture: X,Y in 0 to 1 of its sides, from the upper left.")
    ] = None,
    box: Annotated[str | None, typer.Option(help="What of the picture: X,Y,WIDTH,HEIGHT in 0 to 1.")] = None,
    by: By = None,
    json: Json = False,
) -> None:
    """Say something of an asset's current picture, or of a place in it."""
    with speaking():
        from asset_store.errors import NotFound
        from asset_store.reviewing import comments
        from asset_store.reviewing.queue import find_asset
        from flows.wiring import open_store, os_user

        region = _region(pin, box)
        with open_store() as store, store.database.transaction() as session:
            asset = find_asset(session, asset_id)
            if asset.current is None:
                raise NotFound("picture of asset", asset_id, "Run its campaign: the picture is not made yet.")
            said = comments.comment(session, asset.current.id, by or os_user(), text, region=region)
        answer = {"comment": str(said.id), "asset": str(asset.id), "region": said.region}
        emit(answer) if json else out.print(f"said of {str(asset.id)[:8]}: {plain(said.text)}")


def _region(pin: str | None, box: str | None) -> dict[str, Any] | None:
    if pin is not None and box is not None:
        raise typer.BadParameter("give --pin or --box, not both")
    kind, given, names = ("pin", pin, ("x", "y")) if pin is not None else ("box", box, ("x", "y", "width", "height"))
    if given is None:
        return None
    try:
        values = [float(part) for part in given.split(",")]
    except ValueError:
        values = []
    if len(values) != len(names):
        raise typer.BadParameter(f"give --{kind} as {','.join(n.upper() for n in names)}, numbers from 0 to 1")
    return {"kind": kind, **dict(zip(names, values, strict=True))}


@review_app.command()
def assign(
    asset_id: AssetId,
    person: Annotated[str, typer.Argument(help="Who is asked to decide.")],
    stage: ForStage = "brand",
    remove: Annotated[bool, typer.Option("--remove", help="Ask them no more.")] = False,
    by: By = None,
    json: Json = False,
) -> None:
    """Ask somebody to decide on an asset; `onmodel review list --person NAME` shows what they are asked."""
    with speaking():
        from asset_store.reviewing import assigning
        from asset_store.reviewing.queue import find_asset
        from flows.wiring import open_store, os_user

        who = by or os_user()
        with open_store() as store, store.database.transaction() as session:
            asset = find_asset(session, asset_id)
            if remove:
                assigning.unassign(session, asset.id, stage, person, who)
            else:
                assigning.assign(session, asset.id, stage, person, who)
            asked = [{"stage": a.stage, "person": a.person} for a in assigning.assignments_of(session, asset.id)]
        if json:
            emit({"asset": str(asset.id), "asked": asked})
            return
        told = ", ".join(f"{a['person']} at {a['stage']}" for a in asked) or "nobody in particular"
        out.print(f"{str(asset.id)[:8]}: asked is {plain(told)}")


@review_app.command()
def retake(
    asset_id: AssetId,
    prompt: Annotated[str | None, typer.Option(help="Another prompt.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="Another negative prompt.")] = None,
    scale: Annotated[float | None, typer.Option(help="Another scale of the references.")] = None,
    steps: Annotated[int | None, typer.Option(help="Another number of steps.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Another guidance.")] = None,
    seed: Annotated[int | None, typer.Option(help="This seed; default: another one.")] = None,
    same_seed: Annotated[bool, typer.Option("--same-seed", help="The seed of the current picture.")] = False,
    repaint: Annotated[
        bool | None,
        typer.Option("--repaint/--whole", help="Only the places that boxes and drawings mark, or the whole picture."),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(min=0.01, max=1, help="How far repainted places may leave the picture; default: 0.75."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change; make nothing.")] = False,
    workers: Annotated[
        int, typer.Option(min=0, max=1, help="0 leaves the work to `onmodel worker` processes elsewhere.")
    ] = 1,
    by: By = None,
    json: Json = False,
) -> None:
    """Make an asset that was sent back anew. Without options its comments and reasons say what changes."""
    with speaking():
        from asset_store.reviewing.queue import find_asset
        from flows.retake_plan import Wishes, placed
        from flows.retaking import retake_asset, wish_for
        from flows.wiring import open_store, os_user

        given = {"prompt": prompt, "negative_prompt": negative_prompt, "scale": scale, "steps": steps,
                 "guidance": guidance, "seed": seed}  # fmt: skip
        said = {k: v for k, v in given.items() if v is not None}
        wishes = Wishes.model_validate({**said, "same_seed": same_seed}) if said or same_seed else None
        with open_store() as store:
            with store.database.transaction() as session:
                asset = find_asset(session, asset_id)
                id_ = asset.id
                if repaint is not None or strength is not None:
                    wishes = placed(session, asset, wishes, repaint=repaint, strength=strength)
            if dry_run:
                made = wish_for(id_, wishes).as_json()
            else:
                chosen = None if wishes is None else wishes.model_dump(mode="json")
                with bars(quiet=json):
                    made = asyncio.run(retake_asset(id_, chosen, by or os_user(), workers))
        if json:
            emit(made)
            return
        for remark in made["comments"]:
            out.print(f"[dim]{plain(remark['by'])}:[/] {plain(remark['text'])}")
        shown = table(f"Retake {made['retake']} of {made['of']}", "Setting", "Now", "Then")
        for change in made["changes"]:
            shown.add_row(change["name"], plain(str(change["before"])), plain(str(change["after"])))
        out.print(shown)
        if not dry_run:
            for problem in made["problems"]:
                out.print(f"[red]problem[/] {plain(problem)}")
            out.print(f"{made['asset'][:8]} is now [bold]{plain(made['review'])}[/]")
