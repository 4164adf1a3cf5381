"""`onmodel campaign`: making the pictures of a brief, now or by the calendar."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from asset_store.errors import RunOver
from studio.cli.app import By, Json, Workers, app
from studio.cli.console import Exit, bars, emit, out, plain, speaking, table

if TYPE_CHECKING:
    from asset_store.tables import CampaignSchedule

campaign_app = typer.Typer(no_args_is_help=True, help="Run campaigns from briefs, now or by the calendar.")
app.add_typer(campaign_app, name="campaign")

Brief = Annotated[Path, typer.Argument(help="The campaign's brief, a YAML file.")]
Name = Annotated[str, typer.Argument(help="The scheduled campaign's name.")]
Brand = Annotated[str | None, typer.Option(help="Its brand; needed where several have that name.")]
Reason = Annotated[str, typer.Option("--reason", "-m", help="What it is for; it stands in the lineage.")]


@campaign_app.command("run")
def campaign_run(
    brief: Brief,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and its cost; make nothing.")] = False,
    sheet: Annotated[Path | None, typer.Option("--sheet", help="Where to write the contact sheet PNG.")] = None,
    reason: Reason = "",
    workers: Workers = 1,
    by: By = None,
    json: Json = False,
) -> None:
    """Make the pictures of a brief and put them into review. Stopped and started again it makes only what is missing."""
    with speaking():
        from asset_store.repositories import runs
        from flows.campaign import make_campaign
        from flows.planning import plan_campaign
        from flows.starting import (
            TERMINAL,
            UNLIMITED,
            BriefText,
            campaign_of,
            known,
            request_of_campaign,
            start_campaign,
        )
        from flows.wiring import open_store, os_user

        text = BriefText.read(brief)  # what cannot be read is told before anything is opened
        if dry_run:
            with open_store() as store:
                campaign = campaign_of(request_of_campaign(text), text.parsed)
                with store.database.transaction() as session:
                    known(session, campaign, text)
                plan = plan_campaign(store, campaign, folder=brief.resolve().parent).as_json()
            emit(plan) if json else _show_plan(plan)
            return
        with open_store() as store:
            with store.database.transaction() as session:
                asked = start_campaign(
                    session, text, UNLIMITED, by=by or os_user(), trigger=TERMINAL, reason=reason, sent=True
                )
                run_id = asked.id
            try:
                with bars(quiet=json):
                    report = asyncio.run(make_campaign(run_id, workers, str(sheet.resolve()) if sheet else None))
            except KeyboardInterrupt:
                with suppress(RunOver), store.database.transaction() as session:
                    runs.cancel(session, run_id, by or os_user())
                raise
        emit(report) if json else _show_run(report)
        if report["state"] == "cancelled":
            raise typer.Exit(Exit.FAILED)
        troubled = report["problem"] or report["problems"] or report["review"].get("check failed")
        raise typer.Exit(Exit.PROBLEMS if troubled else Exit.DONE)


def _show_plan(plan: dict[str, Any]) -> None:
    rows = table(f"{plain(plan['campaign'])} for {plain(plan['brand'])}", "Shot", "Character", "Pictures", "Made with")
    for shot in plan["shots"]:
        best = f" (best of {shot['best_of']})" if shot["best_of"] > 1 else ""
        rows.add_row(
            plain(shot["shot"]), plain(shot["character"]), f"{shot['variants']}{best}", plain("\n".join(_made_with(shot)))
        )  # fmt: skip
    out.print(rows)
    out.print(
        f"{plan['pictures']} pictures, {plan['made_already']} made already, [bold]{plan['to_make']} to make[/]; approved by: {plain(', '.join(plan['stages']))}"
    )
    if plan["to_draw"] != plan["to_make"]:
        out.print(f"The engine makes {plan['to_draw']} pictures for them, as best_of keeps one of several.")
    if plan["engine_seconds"] is None:
        out.print("[dim]Cost: no picture of this kind was made here yet, so its time is not known.[/]")
    else:
        out.print(
            f"Cost: about {plan['engine_seconds']:.1f} s of the engine ({plan['engine_seconds_a_picture']:.2f} s a picture, measured here)"
        )


def _made_with(shot: dict[str, Any]) -> list[str]:
    """A line each for references, how they were chosen, those left out, and what else conditions the shot."""
    lines = list(shot["references"]) or ["no references"]
    lines += [f"left out: {told}" for told in shot["left_out"]]
    lines += [f"control {told}" for told in shot["controls"]]
    lines += [f"style {key}" for key in shot["style_references"]]
    lines += [f"away from {key}" for key in shot["negative_references"]]
    lines += list(shot["adapters"])
    lines += [f"region {told}" for told in shot["regions"]]
    lines += [f"LoRA {told}" for told in shot["loras"]]
    if shot["source"] is not None:
        lines.append(f"starts from {shot['source']}")
    if shot["guidance_window"] is not None:
        lines.append(f"guidance window {shot['guidance_window']}")
    lines += [f"engine {shot['engine']}"] if "engine" in shot else []
    if shot["character_model"] is not None:
        lines.append(f"character model {shot['character_model']}")
    if shot["preset"] is not None:
        lines.append(f"preset version {shot['preset']}")
    return lines


def _show_run(report: dict[str, Any]) -> None:
    states = ", ".join(f"{n} {plain(s)}" for s, n in sorted(report["review"].items()))
    out.print(
        f"[bold]{plain(report['campaign'])}[/]: {report['pictures']} pictures, {report['made']} made now, {report['reused']} made before; {states}"
    )
    if report["state"] != "succeeded":
        out.print(f"[red]{plain(report['state'])}[/] {plain(report['problem'] or '')}")
    for problem in report["problems"]:
        out.print(f"[red]problem[/] {plain(problem)}")
    if report["contact_sheet"]:
        out.print(f"Contact sheet: {plain(report['contact_sheet'])}")
    out.print("[dim]Next: onmodel review list[/]")


@campaign_app.command("schedule")
def campaign_schedule(brief: Brief, reason: Reason = "", by: By = None, json: Json = False) -> None:
    """Have a brief run by itself when its `schedule` says so; in the place of the one that is scheduled under its name."""
    with speaking():
        from flows.scheduling import schedule_campaign
        from flows.starting import BriefText
        from flows.wiring import open_store, os_user

        text = BriefText.read(brief)
        with open_store() as store, store.database.transaction() as session:
            row = schedule_campaign(session, text, datetime.now(UTC), by=by or os_user(), reason=reason)
            told = _told(row)
        if json:
            emit(told)
            return
        out.print(
            f"[bold]{plain(told['name'])}[/] of {plain(told['brand'])} runs {plain(told['when'])}; next at {_next_of(told)}"
        )
        out.print("[dim]While `onmodel up` runs, or `python -m flows.deployments` beside a Prefect server.[/]")


@campaign_app.command("pause")
def campaign_pause(name: Name, brand: Brand = None, by: By = None, json: Json = False) -> None:
    """Let a scheduled campaign run no more until it is resumed; what runs goes on."""
    _change(name, brand, by, json, "paused")


@campaign_app.command("resume")
def campaign_resume(name: Name, brand: Brand = None, by: By = None, json: Json = False) -> None:
    """Let a paused campaign run again from now on; what was due meanwhile is not made up for."""
    _change(name, brand, by, json, "resumed")


@campaign_app.command("unschedule")
def campaign_unschedule(name: Name, brand: Brand = None, by: By = None, json: Json = False) -> None:
    """Let a scheduled campaign run never again; what it made stays."""
    _change(name, brand, by, json, "ended")


@campaign_app.command("list")
def campaign_list(json: Json = False) -> None:
    """Scheduled campaigns: when they run, and what they used of their budget."""
    with speaking():
        from asset_store.repositories import schedules
        from flows.wiring import open_store

        with open_store() as store, store.database.transaction() as session:
            told = [{**_told(row), **_spent(session, row)} for row in schedules.schedules(session)]
        if json:
            emit(told)
            return
        if not told:
            out.print("No campaign is scheduled: `onmodel campaign schedule brief.yaml`.")
            return
        rows = table("Scheduled campaigns", "Campaign", "Brand", "When", "Next", "Used", "Budget")
        for t in told:
            used = f"{t['pictures']} pictures, {t['gpu_s']:.1f} s"
            rows.add_row(
                plain(t["name"]), plain(t["brand"]), plain(t["when"]), _next_of(t), used, plain(t["budget"] or "none")
            )
        out.print(rows)


def _change(name: str, brand: str | None, by: str | None, json: bool, what: str) -> None:
    with speaking():
        from asset_store.repositories import schedules
        from flows import scheduling
        from flows.wiring import open_store, os_user

        who, now = by or os_user(), datetime.now(UTC)
        with open_store() as store, store.database.transaction() as session:
            row = schedules.named(session, name, brand)
            if what == "paused":
                schedules.pause(session, row, who, now)
            elif what == "resumed":
                scheduling.resume(session, row, who, now)
            else:
                schedules.end(session, row, who, now)
            told = _told(row)
        emit(told) if json else out.print(
            f"{plain(told['name'])} of {plain(told['brand'])} is {what}; next at {_next_of(told)}"
        )


def _told(row: CampaignSchedule) -> dict[str, Any]:
    from flows.scheduling import budget_of, rhythm_of

    budget = budget_of(row)
    return {
        "id": str(row.id), "name": row.name, "brand": row.brand.name, "when": rhythm_of(row).told, "paused": row.paused_at is not None,
        "ended": row.ended_at is not None, "requested_by": row.requested_by, "reason": row.reason,
        "next_at": None if row.next_at is None else row.next_at.astimezone(rhythm_of(row).zone).isoformat(),
        "budget": None if budget is None else budget.told,
    }  # fmt: skip


def _spent(session: Any, row: CampaignSchedule) -> dict[str, Any]:
    from flows.scheduling import spent_now

    spent = spent_now(session, row, datetime.now(UTC))
    return {"pictures": spent.pictures, "gpu_s": round(spent.gpu_s, 2)}


def _next_of(told: dict[str, Any]) -> str:
    if told["ended"] or told["next_at"] is None:
        return "never"
    return "paused" if told["paused"] else told["next_at"].replace("T", " ")[:16] + told["next_at"][19:]
