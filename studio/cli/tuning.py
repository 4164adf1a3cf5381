"""`onmodel references`, `calibrate`, `tune`: what is best for a character, found out and stored."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

from studio.cli.app import By, Json, app
from studio.cli.console import Exit, bars, emit, err, out, plain, speaking, table

Brand = Annotated[str | None, typer.Option("--brand", help="Whose character, where several brands have one.")]


@app.command()
def references(
    character: Annotated[str, typer.Argument(help="A character's name, as in library.yaml.")],
    prompt: Annotated[str, typer.Option("--prompt", help="Rank for this prompt; none: by typicality.")] = "",
    brand: Brand = None,
    json: Json = False,
) -> None:
    """Rank a character's references for a shot, and say why each is kept or left out."""
    with speaking():
        from flows.choosing import list_references

        told = list_references(character, brand=brand, prompt=prompt)
        emit(told) if json else _show_references(told)


def _show_references(told: dict[str, Any]) -> None:
    kept = sum(r["kept"] for r in told["references"])
    rows = table(f"{plain(told['character'])} of {plain(told['brand'])}: {kept} kept", "", "Reference", "Why")
    for r in told["references"]:
        mark = f"[green]{r['rank']}[/]" if r["kept"] else "[dim]–[/]"
        rows.add_row(mark, plain(r["key"]), plain(r["reason"]))
    out.print(rows)
    out.print(f"[dim]Ranked by {plain(told['ranked_by'])}.[/]")


@app.command()
def calibrate(
    character: Annotated[str | None, typer.Argument(help="A character's name; or give --all.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Every character, or every one of --brand.")] = False,
    brand: Brand = None,
    by: By = None,
    json: Json = False,
) -> None:
    """Find out on the library how alike a picture must be to count as a character, and store it."""
    with speaking():
        if (character is None) != all_:
            err.print("[bold red]Error:[/] which character is not said\n[dim]→[/] Give one name, or --all.")
            raise typer.Exit(Exit.INVALID)
        from flows.calibration import store_calibrations
        from flows.wiring import os_user

        told = store_calibrations(character, brand=brand, by=by or os_user())
        if json:
            emit(told)
            return
        rows = table("", "Character", "Threshold", "Version", "On what it rests")
        for t in told:
            version = f"{t['version']}{', new' if t['new'] else ', as before'}"
            rows.add_row(plain(f"{t['brand']}/{t['character']}"), f"{t['threshold']:.3f}", version, plain(t["told"]))
        out.print(rows)


@app.command()
def tune(
    character: Annotated[str | None, typer.Argument(help="A character's name; with --list it may be left out.")] = None,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", help="A prompt to try; several times for several.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=32, help="Pictures a prompt and setting.")] = 2,
    share: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="How much of text only's figure of following the prompt must be left."),
    ] = None,
    windows: Annotated[bool, typer.Option("--windows", help="Search the window of steps, too.")] = False,
    workers: Annotated[int, typer.Option(min=0, max=16, help="Workers in this process; 0: elsewhere.")] = 1,
    curve: Annotated[Path | None, typer.Option("--curve", help="Where to write the curve's PNG.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="Show the presets there are.")] = False,
    brand: Brand = None,
    by: By = None,
    json: Json = False,
) -> None:
    """Search the adapter scale that makes a character most itself while the words are followed; store it as a preset."""
    with speaking():
        if character is None and not list_:
            err.print("[bold red]Error:[/] which character is not said\n[dim]→[/] Give a name, or --list.")
            raise typer.Exit(Exit.INVALID)
        from flows.tuning import curve_png, list_presets, tune_character
        from flows.wiring import open_store, os_user

        if list_:
            found = list_presets(character, brand)
            emit(found) if json else _show_presets(found)
            return
        assert character is not None
        with open_store(), bars(quiet=json):
            told = asyncio.run(
                tune_character(character, brand, by or os_user(), prompt, seeds, share, windows, workers)
            )
            if curve is not None:
                curve.write_bytes(curve_png(told["picture_sha256"]))
        emit(told) if json else _show_tuning(told, curve)
        raise typer.Exit(Exit.DONE if told["target"]["met"] else Exit.PROBLEMS)


def _show_tuning(told: dict[str, Any], curve: Path | None) -> None:
    target = told["target"]
    rows = table(f"{plain(told['character'])} of {plain(told['brand'])}", "Scale", "Window", "Identity", "Prompt", "")
    for p in sorted(told["curve"], key=lambda p: (p["window"] != [0, 1], p["window"], p["scale"])):
        chosen = (p["scale"], p["window"]) == (told["scale"], told["window"])
        mark = "[green]chosen[/]" if chosen else "" if p["follows_prompt"] else "[dim]leaves the prompt[/]"
        rows.add_row(f"{p['scale']:g}", _window(p["window"]), _figure(p, "identity"), _figure(p, "prompt"), mark)
    out.print(rows)
    out.print(f"Maximised: {plain(target['maximise'])}.")
    out.print(
        f"Prompt: {plain(target['prompt_measure'])}; at least {target['prompt_floor']:.3f}, "
        f"{target['prompt_share']:.0%} of {target['prompt_text_only']:.3f} with text only."
    )
    if not target["met"]:
        out.print(
            "[yellow]No setting follows the prompt that much; the nearest is stored, and campaigns do not use it.[/]"
        )
    new = "stored" if told["new"] else "there already"
    out.print(
        f"[bold]Preset version {told['version']}[/]: scale {told['scale']:g}, window {_window(told['window'])}, {new}"
    )
    if curve is not None:
        out.print(f"Curve: {plain(str(curve))}")


def _show_presets(found: list[dict[str, Any]]) -> None:
    rows = table("", "Character", "Version", "Scale", "Window", "Models", "By", "")
    for p in found:
        mark = "[green]in use[/]" if p["in_use"] else "" if p["met"] else "[yellow]target not met, not used[/]"
        name = plain(f"{p['brand']}/{p['character']}")
        rows.add_row(
            name, str(p["version"]), f"{p['scale']:g}", _window(p["window"]), p["models_sha256"][:12],
            plain(p["made_by"]), mark,
        )  # fmt: skip
    out.print(rows if found else "No presets yet: onmodel tune CHARACTER finds one.")


def _window(window: list[float]) -> str:
    return "all steps" if window == [0, 1] else f"{window[0]:.0%} to {window[1]:.0%}"


def _figure(point: dict[str, Any], name: str) -> str:
    low, high = point[f"{name}_interval"]
    return f"{point[name]:.3f} ({low:.3f} to {high:.3f})"
