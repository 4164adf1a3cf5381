"""`onmodel train`: adapters from a folder, models of characters from the library, and what was trained."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from studio.cli.app import By, Json, app
from studio.cli.console import bars, emit, out, plain, speaking, table

train_app = typer.Typer(no_args_is_help=True, help="Train adapters and models of characters.")
app.add_typer(train_app, name="train")

Steps = Annotated[int | None, typer.Option("--steps", min=1, help="Steps of the optimiser.")]
Batch = Annotated[int | None, typer.Option("--batch", min=1, help="Pictures in one forward pass.")]
Accumulate = Annotated[int | None, typer.Option(min=1, help="Batches that one step adds up, as one large batch.")]
Rate = Annotated[float | None, typer.Option("--lr", help="AdamW's learning rate; default 0.0001.")]
Precision = Annotated[str | None, typer.Option(help="fp32, bf16 or fp16; default: bf16 on a GPU, fp32 on a CPU.")]
Size = Annotated[int | None, typer.Option("--size", help="Side of the pictures in px; default: the base's own.")]
Crop = Annotated[
    Literal["centre", "pad"], typer.Option(help="centre: the middle of a picture; pad: all of it, on white.")
]
Seed = Annotated[int, typer.Option(min=0, help="Another seed is another training.")]
SheetEvery = Annotated[int | None, typer.Option(min=0, help="Draw a sheet of pictures every so many steps.")]
CheckpointEvery = Annotated[
    int | None, typer.Option(min=0, help="Save a checkpoint every so many steps, besides every two minutes.")
]


@train_app.command("adapter")
def train_adapter(
    data: Annotated[str, typer.Option("--data", help="A folder of pictures and captions, or: studio.")],
    to: Annotated[Path, typer.Option("--out", help="Where the adapter, its log and its sheets go.")],
    variant: Annotated[Literal["base", "plus"], typer.Option(help="base (4 tokens) or plus (16 tokens).")] = "base",
    name: Annotated[str | None, typer.Option(help="What the engine calls it: identity, plus, style, …")] = None,
    base: Annotated[
        Path | None,
        typer.Option(help="A diffusers folder or file; default: ONMODEL_ENGINE__BASE, else the studio model."),
    ] = None,
    encoder: Annotated[Path | None, typer.Option(help="The folder of the CLIP image encoder.")] = None,
    steps: Steps = None,
    batch: Batch = None,
    accumulate: Accumulate = None,
    lr: Rate = None,
    weight_decay: Annotated[float | None, typer.Option(help="AdamW's; default 0.01.")] = None,
    ema: Annotated[float | None, typer.Option(help="Keep an average of the weights, as 0.999.")] = None,
    precision: Precision = None,
    size: Size = None,
    crop: Crop = "centre",
    seed: Seed = 0,
    sheet_every: SheetEvery = None,
    checkpoint_every: CheckpointEvery = None,
    by: By = None,
    json: Json = False,
) -> None:
    """Train an IP-Adapter on a frozen base. The same command goes on where a stopped one was."""
    with speaking():
        from flows.training import train_adapter_model
        from flows.wiring import os_user

        settings = _given(
            name=name, steps=steps, batch_size=batch, accumulate=accumulate, lr=lr, weight_decay=weight_decay,
            ema_decay=ema, precision=precision, seed=seed, sheet_every=sheet_every, checkpoint_every=checkpoint_every,
        )  # fmt: skip
        with _training(quiet=json):
            made = asyncio.run(
                train_adapter_model(
                    data if data == "studio" else str(Path(data).expanduser().resolve()), str(to.resolve()), variant,
                    by or os_user(), _path(base), _path(encoder), settings, size, crop,
                )
            )  # fmt: skip
        if json:
            emit(made)
        else:
            out.print(f"[bold]{plain(made['file'])}[/]: {_told(made)}")


@train_app.command("character")
def train_character(
    character: Annotated[str, typer.Argument(metavar="NAME", help="A character of a library: Pip, or lumen/Pip.")],
    references: Annotated[
        list[str] | None, typer.Option("--references", help="Keys in the library, 3 to 8; default: the most typical.")
    ] = None,
    subject: Annotated[str | None, typer.Option(help="What the character is, in a word or two: toy, mascot.")] = None,
    identifier: Annotated[str | None, typer.Option(help="The rare word that comes to mean it; default sks.")] = None,
    rank: Annotated[int | None, typer.Option(min=4, max=16, help="Of the LoRA; default 8.")] = None,
    class_pictures: Annotated[
        int | None, typer.Option(min=0, help="Pictures of the class that the base makes; default 100, 0: no prior.")
    ] = None,
    flips: Annotated[bool, typer.Option("--flips", help="Mirror references; not for one with a left and a right.")] = False,
    steps: Steps = None,
    batch: Batch = None,
    accumulate: Accumulate = None,
    lr: Rate = None,
    precision: Precision = None,
    size: Size = None,
    crop: Crop = "centre",
    seed: Seed = 0,
    sheet_every: SheetEvery = None,
    checkpoint_every: CheckpointEvery = None,
    by: By = None,
    json: Json = False,
) -> None:  # fmt: skip
    """Train a model of one character (DreamBooth as LoRA) on its references, and record it as its next version."""
    with speaking():
        from flows.training import train_character_model
        from flows.wiring import os_user

        settings = _given(
            subject=subject, identifier=identifier, rank=rank, class_pictures=class_pictures or None,
            prior_weight=0.0 if class_pictures == 0 else None, flips=flips or None, steps=steps, batch_size=batch,
            accumulate=accumulate, lr=lr, precision=precision, size_px=size, crop=crop, seed=seed,
            sheet_every=sheet_every, checkpoint_every=checkpoint_every,
        )  # fmt: skip
        with _training(quiet=json):
            made = asyncio.run(train_character_model(character, by or os_user(), references or None, settings))
        if json:
            emit(made)
            return
        out.print(f"[bold]{plain(made['name'])} version {made['version']}[/]: {_told(made)}")
        for line in made["chosen"]:
            out.print(f"  learnt from {plain(line)}")
        out.print(f"[dim]In a prompt it is: a {plain(made['phrase'])}[/]")


@train_app.command("list")
def train_list(json: Json = False) -> None:
    """The trained models: version, sha256, base, references, and whether they may be used."""
    with speaking():
        from flows.training_report import listed

        found = listed()
        if json:
            emit(found)
            return
        rows = table("", "Model", "Version", "Kind", "sha256", "Base", "References", "Usable")
        for m in found:
            usable = "[green]yes[/]" if not m["problems"] else "[red]no[/]: " + plain("; ".join(m["problems"]))
            rows.add_row(
                plain(m["name"]), str(m["version"]), m["kind"], m["sha256"][:16], plain(m["base"]),
                plain(", ".join(m["references"]) or "–"), usable,
            )  # fmt: skip
        out.print(rows)


def _training(*, quiet: bool) -> Any:
    """Bars for people who wait at a terminal; the store stays open in between."""
    from contextlib import ExitStack

    from flows.wiring import open_store

    held = ExitStack()
    held.enter_context(open_store())
    held.enter_context(bars(quiet=quiet))
    return held


def _given(**settings: Any) -> dict[str, Any]:
    return {k: v for k, v in settings.items() if v is not None}


def _path(folder: Path | None) -> str | None:
    return None if folder is None else str(folder.expanduser().resolve())


def _told(made: dict[str, Any]) -> str:
    seconds = made["figures"].get("seconds")
    return f"sha256 {made['sha256'][:16]}…, {made['size_bytes'] / 1e6:.1f} MB, trained in {seconds} s on {plain(made['base'])}"
