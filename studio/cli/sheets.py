"""`onmodel sheet`, `onmodel runs`: character sheets, and following and cancelling what was asked for."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path
from typing import Annotated, Any

import typer

from studio.cli.app import By, Json, Workers, app
from studio.cli.console import Exit, bars, emit, out, plain, speaking, table

runs_app = typer.Typer(no_args_is_help=True, help="What was asked for, how far it is, and ending it.")
app.add_typer(runs_app, name="runs")

Words = Annotated[str | None, typer.Option(help="By commas.")]


@app.command()
def sheet(
    character: Annotated[str, typer.Argument(help="A character of the brand's library.")],
    brand: Annotated[str | None, typer.Option(help="Its brand; not needed where only one brand has it.")] = None,
    views: Words = None,
    expressions: Words = None,
    poses: Words = None,
    outfits: Words = None,
    style: Annotated[str | None, typer.Option(help="How it is drawn, such as pixel.")] = None,
    size: Annotated[str | None, typer.Option("--format", help="Of a cell, such as 512x512.")] = None,
    attempts: Annotated[int, typer.Option(min=1, max=5, help="How often a cell that is off model is made.")] = 3,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    to: Annotated[Path, typer.Option("--to", help="A folder for the sheet as PNG, PDF and JSON.")] = Path(),
    reason: Annotated[str, typer.Option("--reason", "-m", help="What it is for; it stands in the lineage.")] = "",
    workers: Workers = 1,
    by: By = None,
    json: Json = False,
) -> None:
    """Make a model sheet of a character: views, expressions, poses and outfits, its palette and its references."""
    with speaking():
        from asset_store.repositories import libraries, runs
        from flows.character_sheet import make_character_sheet
        from flows.starting import TERMINAL, UNLIMITED, start_sheet
        from flows.wiring import open_store, os_user

        with open_store() as store:
            with store.database.transaction() as session:
                asked: dict[str, Any] = {
                    "views": views, "expressions": expressions, "poses": poses, "outfits": outfits, "style": style,
                    "format": size,
                }  # fmt: skip
                given = {k: v if k in ("style", "format") else _words(v) for k, v in asked.items() if v is not None}
                who = libraries.find_character(session, character, brand)
                request = _request(
                    brand=who.brand.name, character=who.name, attempts=attempts, seed=seed,
                    reason=reason, **given,
                )  # fmt: skip
                run_id = start_sheet(session, request, UNLIMITED, by=by or os_user(), trigger=TERMINAL, sent=True).id
            try:
                with bars(quiet=json):
                    told = asyncio.run(make_character_sheet(run_id, workers))
            except KeyboardInterrupt:
                with store.database.transaction() as session:
                    runs.cancel(session, run_id, by or os_user())
                raise
            files = _saved(store.blobs, told["result"], to, character)
        emit({**told, "saved": files}) if json else _show(told, files)
        if told["state"] != "succeeded":
            raise typer.Exit(Exit.FAILED)
        raise typer.Exit(Exit.DONE if told["problem"] is None else Exit.PROBLEMS)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _request(**given: Any) -> Any:
    from pydantic import ValidationError

    from asset_store.errors import BriefInvalid, Problem
    from flows.sheet_request import SheetRequest

    try:
        return SheetRequest.model_validate(given)
    except ValidationError as error:
        problems = [
            Problem("the sheet", 0, ".".join(map(str, e["loc"])), e["msg"]) for e in error.errors(include_url=False)
        ]
        raise BriefInvalid(problems) from None


def _saved(blobs: Any, result: dict[str, Any] | None, to: Path, character: str) -> dict[str, str]:
    if result is None:
        return {}
    to.mkdir(parents=True, exist_ok=True)
    saved = {}
    for kind, sha256 in result["files"].items():
        path = to / f"{_name(character)}-sheet.{kind}"
        path.write_bytes(blobs.get(sha256))
        saved[kind] = str(path)
    return saved


def _name(character: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in character.casefold()).strip("-") or "character"


def _show(told: dict[str, Any], files: dict[str, str]) -> None:
    result = told["result"]
    if result is None:
        out.print(f"[red]{plain(told['state'])}[/]: {plain(told['problem'] or 'nothing was made')}")
        return
    rows = table(
        f"{plain(result['character'])} of {plain(result['brand'])}",
        "Row",
        "Cell",
        "On model",
        "Identity",
        "Tries",
        "Alike",
    )
    for cell in result["cells"]:
        identity = cell["identity"]
        shown = "" if identity is None or identity["value"] is None else f"{identity['value']:.2f}"
        state = "[green]yes[/]" if cell["on_model"] else f"[red]no[/] {plain(', '.join(cell['failed']))}"
        alike = "" if cell["likeness"] is None else f"{cell['likeness']:.2f}"
        rows.add_row(cell["section"], plain(cell["label"]), state, shown, str(cell["tries"]), alike)
    out.print(rows)
    if result["consistency"] is not None:
        out.print(f"Consistency of the cells: [bold]{result['consistency']:.2f}[/]")
    for path in files.values():
        out.print(f"  {plain(path)}")
    out.print(f"[dim]Run {told['run']}; its pictures are in review.[/]")


# ---------------------------------------------------------------------------- runs


@runs_app.command("list")
def runs_list(limit: Annotated[int, typer.Option(min=1, max=1000)] = 20, json: Json = False) -> None:
    """The newest runs, whoever asked for them."""
    with speaking():
        from asset_store.repositories import runs
        from flows.wiring import open_store

        with open_store() as store, store.database.transaction() as session:
            told = [_told(run) for run in runs.page(session, None, None, limit).runs]
        if json:
            emit(told)
            return
        rows = table("Runs", "Run", "What", "Brand", "State", "Made", "Asked for by", "Through")
        for run in told:
            made = f"{run['done']} of {run['total']}"
            rows.add_row(
                run["id"][:8],
                run["kind"],
                plain(run["brand"]),
                run["state"],
                made,
                plain(run["requested_by"]),
                run["trigger"],
            )
        out.print(rows)


@runs_app.command("cancel")
def runs_cancel(
    run: Annotated[uuid.UUID, typer.Argument(help="Its whole id.")], by: By = None, json: Json = False
) -> None:
    """End a run: what is not made yet is not made."""
    with speaking():
        from asset_store.repositories import runs
        from flows.wiring import open_store, os_user

        with open_store() as store, store.database.transaction() as session:
            told = _told(runs.cancel(session, run, by or os_user()))
        emit(told) if json else out.print(f"Run {told['id']} is {told['state']}.")


def _told(run: Any) -> dict[str, Any]:
    return {
        "id": str(run.id), "kind": run.kind.value, "brand": run.brand.name, "state": run.state.value, "phase": run.phase,
        "done": run.done, "total": run.total, "requested_by": run.requested_by, "reason": run.reason, "trigger": run.trigger,
        "problem": run.problem, "made_at": run.made_at.isoformat(),
    }  # fmt: skip
