"""`onmodel evaluate`: one table of what each method is worth and costs, measured here, stored, shown again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from flows.evaluation_order import CHARACTERS, HELD_OUT_SEEDS, EvaluationOrder
from studio.cli.app import By, Json, app
from studio.cli.console import bars, emit, out, plain, speaking, table

FIGURES = (("identity", "Identity"), ("prompt", "Prompt"), ("clip_i", "CLIP-I"), ("clip_t", "CLIP-T"), ("dino", "DINO"),
           ("diversity", "Divers."), ("setup_s", "Set-up"), ("image_s", "s/image"))  # fmt: skip
UNITS = ("B", "KB", "MB", "GB")
_OPEN = "none: the protocol's, else"


@app.command()
def evaluate(
    images: Annotated[
        Path | None, typer.Option(help="Your pictures: a folder a subject, or a metadata.jsonl; or a protocol's data.")
    ] = EvaluationOrder.images,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="characters, images, ip-adapter (COCO, 5,000 × 4) or dreambench (30 × 25 × 4); "
            f"none: images where --images is given, else {EvaluationOrder.protocol}."
        ),
    ] = None,
    methods: Annotated[
        str,
        typer.Option(help="Of text, adapter, plus, lora, both, native, with commas; none: all that can be measured."),
    ] = "",
    subjects: Annotated[
        int | None, typer.Option(min=1, help=f"So many subjects; none: {CHARACTERS} held-out characters, else all.")
    ] = EvaluationOrder.subjects,
    prompts: Annotated[
        int, typer.Option(min=1, max=100, help="Stagings of each held-out character.")
    ] = EvaluationOrder.prompts,
    prompt: Annotated[
        list[str] | None, typer.Option(help="A prompt for your pictures, with {subject} in it; may be repeated.")
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=100,
            help=f"Pictures of each prompt; none: {HELD_OUT_SEEDS} of held-out characters, else the protocol's.",
        ),
    ] = EvaluationOrder.seeds,
    references: Annotated[
        int, typer.Option(min=1, max=8, help="Pictures that a LoRA of a held-out character learns.")
    ] = EvaluationOrder.references,
    heard: Annotated[
        int, typer.Option(min=1, max=16, help="References that an adapter hears.")
    ] = EvaluationOrder.heard,
    scale: Annotated[
        float | None, typer.Option(min=0.0, help=f"How strongly an adapter speaks; {_OPEN} 1.")
    ] = EvaluationOrder.scale,
    steps: Annotated[
        int | None, typer.Option(min=1, max=1000, help=f"Denoising steps; {_OPEN} the family's.")
    ] = EvaluationOrder.steps,
    guidance: Annotated[
        float | None, typer.Option(min=0.0, help=f"Guidance; {_OPEN} the family's.")
    ] = EvaluationOrder.guidance,
    scheduler: Annotated[
        str | None, typer.Option(help=f"ddim, dpmpp_2m, euler or unipc; {_OPEN} the family's.")
    ] = EvaluationOrder.scheduler,
    size: Annotated[
        int | None, typer.Option(min=16, help=f"Side of the pictures in pixels; {_OPEN} the family's.")
    ] = EvaluationOrder.size_px,
    lora_steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps of each LoRA; none: as `onmodel train character` has it.")
    ] = EvaluationOrder.lora_steps,
    engine: Annotated[
        str | None, typer.Option(help="One of ONMODEL_ENGINES by its name, which the method native compares.")
    ] = EvaluationOrder.engine,
    plus: Annotated[
        Path | None, typer.Option(help="A plus adapter's file, beside the identity adapter.")
    ] = EvaluationOrder.plus,
    clip: Annotated[
        Path | None, typer.Option(help="A CLIPModel's folder to measure CLIP-I and CLIP-T with.")
    ] = EvaluationOrder.clip,
    dino: Annotated[Path | None, typer.Option(help="A DINO ViT's folder to measure with.")] = EvaluationOrder.dino,
    to: Annotated[
        Path | None, typer.Option("--out", help="Where pictures and trained models are kept; none: in ONMODEL_HOME.")
    ] = EvaluationOrder.out,
    sheet: Annotated[
        Path | None, typer.Option(help="Write a sheet: references and one picture a method.")
    ] = EvaluationOrder.sheet,
    listed: Annotated[bool, typer.Option("--list", help="Show what was stored; make nothing.")] = False,
    show: Annotated[str, typer.Option(help="Show one stored table, by the start of its id.")] = "",
    by: By = None,
    json: Json = False,
) -> None:
    """Compare text, IP-Adapter, plus, DreamBooth LoRA, both and another engine on the same subjects. Stopped, it goes on where it was."""
    with speaking():
        from flows.wiring import open_store, os_user

        if listed or show:
            return _show_stored(show, json)
        from flows.evaluation import evaluate as measured

        order = EvaluationOrder(
            protocol=protocol or ("images" if images is not None else EvaluationOrder.protocol),
            images=images,
            clip=clip,
            dino=dino,
            plus=plus,
            methods=tuple(m.strip() for m in methods.split(",") if m.strip()),
            subjects=subjects,
            prompts=prompts,
            texts=tuple(prompt or ()),
            seeds=seeds,
            references=references,
            heard=heard,
            engine=engine,
            scale=scale,
            steps=steps,
            guidance=guidance,
            scheduler=scheduler,
            size_px=size,
            lora_steps=lora_steps,
            out=to,
            sheet=sheet,
        )
        with open_store() as store, bars(quiet=json):
            told = measured(store, order, by or os_user())
        emit(told) if json else _show(told)
    return None


def _show_stored(show: str, json: bool) -> None:
    from asset_store.repositories import evaluations
    from flows.evaluation import as_json
    from flows.wiring import open_store

    with open_store() as store, store.database.transaction() as session:
        if show:
            told = as_json(evaluations.get(session, show))
            emit(told) if json else _show(told)
            return
        stored = [as_json(e) for e in evaluations.latest(session)]
    if json:
        emit({"evaluations": stored})
        return
    rows = table("Evaluations", "Id", "When", "Protocol", "Subjects", "Methods", "By")
    for told in stored:
        names = ", ".join(r["title"] for r in told["rows"])
        subjects = str(told["settings"].get("subjects", ""))
        rows.add_row(told["id"][:8], told["made_at"][:16], plain(told["protocol"]), subjects, plain(names), plain(told["made_by"]))  # fmt: skip
    out.print(rows)


def _show(told: dict[str, Any]) -> None:
    """Only columns that something was measured for."""
    settings, rows = told["settings"], told["rows"]
    shown = [(k, t) for k, t in FIGURES if any(r["figures"].get(k) for r in rows)]
    drawn = table(
        f"{plain(told['protocol'])}: {settings['subjects']} subjects, {_each(settings)} pictures of each",
        "Method", *(t for _, t in shown), "On disk",
    )  # fmt: skip
    for row in rows:
        drawn.add_row(
            f"[bold]{plain(row['title'])}[/]", *(_cell(row["figures"].get(k), k) for k, _ in shown),
            _disk(row),
        )  # fmt: skip
    for row in told["published"]:
        cells = [f"{row['figures'][k]:.3f}" if k in row["figures"] else "" for k, _ in shown]
        drawn.add_row(f"[dim]{plain(row['title'])} (published)[/]", *cells, "")
    out.print(drawn)
    _show_against_text(rows, shown)
    for warning in settings["mismatched"]:
        out.print(f"[yellow]{plain(warning)}[/]")
    if settings["changed"]:
        told_changes = plain("; ".join(settings["changed"]))
        out.print(f"[yellow]Changed from the protocol: {told_changes}: published figures are no comparison[/]")
    out.print(f"[dim]{plain(_how(settings))}[/]")
    if told["published_in"]:
        out.print(f"[dim]Published in {plain(told['published_in'])}.[/]")
    for left in settings["left_out"]:
        out.print(f"[dim]Not measured: {plain(left['title'])}, {plain(left['why'])}.[/]")
    for row in rows:
        for note in row["notes"]:
            out.print(f"[dim]{plain(row['title'])}: {plain(note)}.[/]")
    if "made_now" in told:
        before = told["made_before"]
        out.print(f"{told['made_now']} pictures made now, {before} made before; stored as {told['id'][:8]}")


def _show_against_text(rows: list[dict[str, Any]], shown: list[tuple[str, str]]) -> None:
    """What each method adds to text only, shot by shot; nothing where text only was not measured."""
    compared = [r for r in rows if r["against_text"]]
    if not compared:
        return
    columns = [(k, t) for k, t in shown if any(k in r["against_text"] for r in compared)]
    drawn = table("Less text only, in pairs of the same subject, prompt and seed", "Method", *(t for _, t in columns))
    for row in compared:
        drawn.add_row(f"[bold]{plain(row['title'])}[/]", *(_cell(row["against_text"].get(k), k) for k, _ in columns))
    out.print(drawn)


def _each(settings: dict[str, Any]) -> str:
    fewest, most = settings["pictures_a_subject"]
    return str(fewest) if fewest == most else f"{fewest} to {most}"


def _how(settings: dict[str, Any]) -> str:
    identity = (
        "Identity and prompt are read by the judge" if settings["identity_by"] == "judge" else "Identity is CLIP-I"
    )
    own = ", the adapter's own encoder" if settings["clip_is_the_adapters_own"] else ""
    measures = [identity, f"CLIP-I by {settings['clip']}{own}" if settings["clip"] else "no CLIP"]
    measures.append(f"CLIP-T is the {settings['clip_t']}" if settings["clip_t"] else "no CLIP-T: give --clip FOLDER")
    measures += [f"DINO by {settings['dino']}"] if settings["dino"] else []
    made = f"{settings['steps']} steps of {settings['scheduler']}, guidance {settings['guidance']:g}, {settings['size_px']} px"
    return (
        "; ".join(measures)
        + f". Made in {made}; measured on {settings['machine']} in {settings['dtype']}, at most {settings['max_batch']} at once; "
        "the small figures are 95 % intervals, and on disk what all subjects share."
    )


def _cell(figure: dict[str, Any] | None, key: str) -> str:
    """The value, and under it the interval: `0.712` over `.65–.77`, or `-.02 to .04`."""
    if figure is None:
        return ""
    digits = 2 if key.endswith("_s") else 3
    value, interval = f"{figure['value']:.{digits}f}", figure["interval_95"]
    if interval is None:
        return value
    between = " to " if interval[0] < 0 else "–"
    return f"{value}\n[dim]{between.join(_short(x) for x in interval)}[/]"


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) >= 1 else f"{value:.2f}".replace("0.", ".", 1)


def _disk(row: dict[str, Any]) -> str:
    """What every subject takes, and under it what is there once for all."""
    return "\n".join(
        t
        for t in (_size(row["subject_bytes"]), f"[dim]+{_size(row['shared_bytes'])}[/]" if row["shared_bytes"] else "")
        if t
    )


def _size(size: int | None) -> str:
    if not size:
        return ""
    value, unit = float(size), 0
    while value >= 1000 and unit < len(UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.3g} {UNITS[unit]}"
