"""`onmodel`: ingest libraries, run campaigns, review, release, and say where every picture came from."""

from __future__ import annotations

import asyncio
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import typer

from flows.settings import configure_prefect, load_settings
from studio.cli.console import Exit, Options, bars, emit, err, out, plain, speaking, table

app = typer.Typer(
    name="onmodel",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Keeps a brand's pictures on model: references in, approved pictures with full lineage out.",
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document for machines.")]
Workers = Annotated[int, typer.Option(min=0, max=16, help="Workers in this process; 0: `onmodel worker` elsewhere.")]
By = Annotated[str | None, typer.Option("--by", help="Who acts; default: the user of this terminal.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        try:
            out.print(f"onmodel {version('onmodel')}")
        except PackageNotFoundError:
            out.print("onmodel (not installed)")
        raise typer.Exit


@app.callback()
def main(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and Prefect's log.")] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    Options.debug = debug
    with speaking():
        configure_prefect(load_settings(), verbose=debug, hub=context.invoked_subcommand == "models")


@app.command()
def ingest(
    library: Annotated[str, typer.Argument(help="s3://bucket/prefix or a folder, with a library.yaml in it.")],
    by: By = None,
    json: Json = False,
) -> None:
    """Load a reference library: check every picture, embed it, store it. Again: only what changed."""
    with speaking():
        from flows.library import ingest_library
        from flows.wiring import address_of, open_store, os_user

        with open_store(), bars(quiet=json):
            report = asyncio.run(ingest_library(address_of(library), by or os_user()))
        if json:
            emit(report)
        else:
            _show_ingest(report)
        raise typer.Exit(Exit.PROBLEMS if report["quarantined"] else Exit.DONE)


def _show_ingest(report: dict[str, Any]) -> None:
    out.print(
        f"[bold]{plain(report['brand'])}[/]: {report['loaded']} loaded, {report['embedded']} embedded, "
        f"{report['unchanged']} unchanged, {report['removed']} removed, "
        f"{len(report['quarantined'])} quarantined"
    )
    if report["quarantined"]:
        rows = table("Quarantined", "File", "Why", "What to do")
        for q in report["quarantined"]:
            rows.add_row(plain(q["key"]), plain(q["message"]), plain(q["next_step"]))
        out.print(rows)
    if report["unlisted"]:
        names = ", ".join(plain(k) for k in report["unlisted"][:5])
        more = f" and {len(report['unlisted']) - 5} more" if len(report["unlisted"]) > 5 else ""
        out.print(f"[dim]Not named in library.yaml, left alone: {names}{more}.[/]")


@app.command()
def worker(
    batch: Annotated[
        int | None, typer.Option(min=1, max=256, help="Pictures in one batch; default: the family's.")
    ] = None,
    engine_name: Annotated[
        str,
        typer.Option("--engine", help="One of ONMODEL_ENGINES by its name; default: the engine that reads libraries."),
    ] = "",
) -> None:
    """Make queued pictures until stopped. Start as many as there are GPUs; killing one loses nothing."""
    with speaking():
        from flows.wiring import engine, open_store
        from flows.worker import work_until_told

        with open_store() as store:
            err.print(f"[dim]Working on {plain(store.database.describe())}; Ctrl-C ends after the batch under way.[/]")
            tally = work_until_told(
                store, engine(store.settings, engine_name), batch_size=batch, engine_name=engine_name
            )
        out.print(f"{tally.made} made in {tally.batches} batches, {tally.failed} failed")


@app.command()
def release(
    assets: Annotated[
        list[str] | None, typer.Argument(help="Assets, by the start of their ids; none: all approved.")
    ] = None,
    to: Annotated[str, typer.Option("--to", help="Where to deliver: a folder or s3://bucket/prefix.")] = "",
    campaign: Annotated[str | None, typer.Option("--campaign", help="All approved assets of this campaign.")] = None,
    channel: Annotated[str, typer.Option(help="What the place is called in the record.")] = "delivery",
    by: By = None,
    json: Json = False,
) -> None:
    """Deliver approved assets: the picture, a WebP and its lineage, to a folder or an S3 prefix."""
    with speaking():
        from asset_store.reviewing.queue import find_asset
        from flows.publish import approved_assets, release_assets
        from flows.wiring import address_of, open_store, os_user

        if not to:
            err.print(
                "[bold red]Error:[/] where to deliver is not said\n[dim]→[/] Give --to FOLDER or --to s3://bucket/prefix."
            )
            raise typer.Exit(Exit.INVALID)
        place = address_of(to)
        with open_store() as store, bars(quiet=json):
            if assets:
                with store.database.transaction() as session:
                    ids = [find_asset(session, a).id for a in assets]
            else:
                ids = list(approved_assets(campaign))
            report = (
                asyncio.run(release_assets(ids, place, by or os_user(), channel))
                if ids
                else {"released": [], "refused": []}
            )
        if json:
            emit(report)
        else:
            out.print(f"{len(report['released'])} released to {plain(place)}, {len(report['refused'])} refused")
            for refusal in report["refused"]:
                out.print(
                    f"[red]refused[/] {refusal['asset'][:8]}: {plain(refusal['refused'])}\n[dim]→[/] {plain(refusal['next_step'])}"
                )
        raise typer.Exit(
            Exit.FAILED
            if report["refused"] and not report["released"]
            else Exit.PROBLEMS
            if report["refused"]
            else Exit.DONE
        )


def load_commands() -> None:
    """Have every module register its commands."""
    from studio.cli import (  # noqa: F401  (they register their commands)
        agents,
        asking,
        campaigns,
        discussing,
        evaluating,
        models,
        people,
        reviewing,
        rights,
        serving,
        sheets,
        telling,
        training,
        tuning,
    )


def run() -> None:
    """The console script."""
    load_commands()
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(Exit.INTERRUPTED)
