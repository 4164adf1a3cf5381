"""`onmodel models`: the files that pictures are made with, added by hash, listed with licences, verified and removed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from studio.cli.app import By, Json, app
from studio.cli.console import Exit, bars, emit, err, out, plain, speaking, table

models_app = typer.Typer(no_args_is_help=True, help="The models that pictures are made with.")
app.add_typer(models_app, name="models")

Kind = Literal["base", "adapter", "encoder", "lora", "controlnet", "embedding"]
_SURE = {
    "sha256": "[green]yes[/]",
    "in part": "in part",
    "pinned": "as pinned",
    "name": "[yellow]no, by name alone[/]",
    "no": "no",
}


@models_app.command("add")
def add(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A file, a folder, s3://bucket/prefix or hub:owner/name[@revision][:path].")
    ],
    name: Annotated[str | None, typer.Option(help="What settings call it; default: as the source does.")] = None,
    kind: Annotated[Kind | None, typer.Option(help="Where the files do not tell.")] = None,
    variant: Annotated[str | None, typer.Option(help="As light or plus-face, where nobody knows the file.")] = None,
    base: Annotated[str | None, typer.Option(help="The family that it is for: sd15 or sdxl.")] = None,
    encoder: Annotated[str | None, typer.Option(help="The image encoder that it needs: vit-h, vit-bigg, …")] = None,
    licence: Annotated[str | None, typer.Option(help="Its licence, for lineage and lists.")] = None,
    sha256: Annotated[str | None, typer.Option(help="What its file of weights must have.")] = None,
    replacing: Annotated[bool, typer.Option("--replace", help="Put it in the place of a model of the same name.")] = False,
    by: By = None,
    json: Json = False,
) -> None:  # fmt: skip
    """Copy a model into ONMODEL_HOME, checked, with the sha256 of every file. Again: nothing changes."""
    with speaking():
        from flows.configured import model_store
        from flows.model_facts import Said
        from flows.settings import load_settings
        from flows.wiring import os_user

        settings = load_settings()
        said = Said(kind, variant, base, encoder, licence, sha256.lower() if sha256 else None)
        with bars(quiet=json):
            added = model_store(settings).add(
                source, by or os_user(), settings.s3, name=name, said=said, replacing=replacing
            )
        for note in added.notes:
            err.print(f"[yellow]Note:[/] {plain(note)}")
        if json:
            emit({**_as_json(added.model), "new": added.new, "notes": added.notes})
            return
        m = added.model
        out.print(f"[bold]{plain(m.name)}[/] {'is added' if added.new else 'is there already'}: {plain(_title(_as_json(m)))}, "
                  f"{_size(m.size_bytes)}, licence {plain(m.licence or 'not known')}")  # fmt: skip
        if m.revision:
            out.print(f"[dim]at commit {plain(m.revision)}[/]")


@models_app.command("list")
def list_models(
    known: Annotated[bool, typer.Option("--known", help="The published files that are recognised, instead.")] = False,
    json: Json = False,
) -> None:
    """The models that are there: kind, base, variant, the encoder each needs, licence, size, and whether it is verified."""
    with speaking():
        from dataclasses import asdict

        from flows.configured import model_store
        from flows.settings import load_settings
        from ipadapter_engine.registry import registry

        store = model_store(load_settings())
        if known:
            _show_known([asdict(f) for f in registry().files], json=json)
            return
        found = [_row(store, name) for name in store.names()]
        if json:
            emit(found)
            return
        rows = table("", "Model", "Kind", "Base", "Variant", "Needs", "Licence", "Size", "Verified")
        for m in found:
            if "problem" in m:
                rows.add_row(plain(m["name"]), "[red]damaged[/]", "", "", "", plain(m["problem"]), "", "")
                continue
            rows.add_row(
                plain(m["name"]), m["kind"], plain(m["base"] or "–"), plain(m["variant"] or "–"), plain(m["encoder"] or "–"),
                plain(m["licence"] or "not known"), _size(m["size_bytes"]), _SURE[m["recognised"]],
            )  # fmt: skip
        out.print(rows)


@models_app.command("verify")
def verify(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One model; default: all.")] = None,
    json: Json = False,
) -> None:
    """Hash every file again: which one is damaged, missing or foreign. Exit code 1 where one is."""
    with speaking():
        from dataclasses import asdict

        from flows.configured import model_store
        from flows.settings import load_settings

        store = model_store(load_settings())
        with bars(quiet=json):
            problems = store.verify(name)
        if json:
            emit({"models": [name] if name else store.names(), "problems": [asdict(p) for p in problems]})
        else:
            for p in problems:
                out.print(f"[red]{p.what}[/] {plain(p.model)}: {plain(p.message)}")
            whole = (
                "all files are as they were added"
                if not problems
                else f"{len(problems)} files are not as they were added"
            )
            out.print(f"{1 if name else len(store.names())} models, {whole}")
            if problems:
                err.print("[dim]→[/] Add a damaged model again with --replace; move what is foreign away.")
        raise typer.Exit(Exit.FAILED if problems else Exit.DONE)


@models_app.command("remove")
def remove(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A model of the list.")],
    force: Annotated[bool, typer.Option("--force", help="Although the settings name it.")] = False,
    json: Json = False,
) -> None:
    """Delete a model's files. Pictures that were made with it keep its hashes in their lineage."""
    with speaking():
        from flows.configured import model_store, settings_naming
        from flows.model_files import ModelRefused
        from flows.settings import load_settings

        settings = load_settings()
        naming = settings_naming(settings, name)
        if naming and not force:
            raise ModelRefused(
                f"{name} is what {' and '.join(naming)} names", "Change the setting first, or give --force."
            )
        model = model_store(settings).remove(name)
        if json:
            emit({"removed": name, "freed_bytes": model.size_bytes if model else None})
        else:
            out.print(f"[bold]{plain(name)}[/] is removed" + (f", {_size(model.size_bytes)} freed" if model else ""))


def _as_json(model: Any) -> dict[str, Any]:
    from flows.model_facts import recognised
    from ipadapter_engine.registry import registry

    by = recognised(model, registry())
    return {**model.as_json(), "size_bytes": model.size_bytes, "recognised": by, "verified": by in ("sha256", "pinned")}


def _row(store: Any, name: str) -> dict[str, Any]:
    """A model, or what is wrong with its manifest."""
    from flows.model_files import ModelRefused
    from ipadapter_engine.errors import CheckpointRefused

    try:
        return _as_json(store.get(name))
    except (CheckpointRefused, ModelRefused) as refused:
        return {"name": name, "problem": refused.message}


def _show_known(files: list[dict[str, Any]], *, json: bool) -> None:
    if json:
        emit(files)
        return
    rows = table("", "File", "Kind", "Variant", "Base", "Needs", "Licence", "sha256")
    for f in files:
        rows.add_row(
            plain(f["name"]), f["kind"], plain(f["variant"] or "–"), plain(f["base"] or "–"), plain(f["encoder"] or "–"),
            plain(f["licence"]), (f["sha256"] or "not known")[:16],
        )  # fmt: skip
    out.print(rows)


def _title(m: dict[str, Any]) -> str:
    needs = f", needs {m['encoder']}" if m["encoder"] else ""
    return f"{m['kind']} {m['variant']}".strip() + (f" for {m['base']}" if m["base"] else "") + needs


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.2f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.1f} MB"
