"""`onmodel subscriptions …`: who is told of what happens, by web hook, chat or e-mail."""

from __future__ import annotations

from typing import Annotated

import typer

from asset_store.tables import Format
from studio.cli.app import By, Json, app
from studio.cli.console import emit, out, plain, speaking, table

subscriptions_app = typer.Typer(no_args_is_help=True, help="Who is told of what happens to pictures and runs.")
app.add_typer(subscriptions_app, name="subscriptions")
Name = Annotated[str, typer.Argument(help="What it is for, such as agency-chat.")]


@subscriptions_app.command("add")
def add(
    name: Name,
    target: Annotated[
        str, typer.Argument(help="https://…, mailto:somebody@…, or mailto:asked for who is asked to decide.")
    ],
    format_: Annotated[Format, typer.Option("--format", help="json (signed), slack, or email.")] = Format.JSON,
    action: Annotated[
        list[str] | None,
        typer.Option(
            "--event", "--action", help="Only this, such as run.finished or request changes; several times for more."
        ),
    ] = None,
    brand: Annotated[str | None, typer.Option(help="Only of this brand.")] = None,
    by: By = None,
    json: Json = False,
) -> None:
    """Tell somebody of what happens from now on, and print the secret that JSON is signed with, this once."""
    with speaking():
        from asset_store import telling
        from flows.wiring import open_store, os_user

        with open_store() as store, store.database.transaction() as session:
            row = telling.subscribe(session, name, target, format_, by or os_user(), action or (), brand)
        if json:
            emit({"name": row.name, "target": row.target, "secret": row.secret})
            return
        out.print(f"{plain(row.name)} is told from now on, while `onmodel up` runs")
        if format_ is Format.JSON:
            out.print(f"JSON is signed with this secret, shown this once: {row.secret}")


@subscriptions_app.command("list")
def list_(json: Json = False) -> None:
    """All of them, with what the last try came to."""
    with speaking():
        from asset_store import telling
        from flows.wiring import open_store

        with open_store() as store, store.database.transaction() as session:
            rows = telling.subscriptions(session)
            found = [
                {"name": r.name, "target": r.target, "format": r.format.value, "actions": ", ".join(r.actions) or "all",
                 "state": _state(r.disabled_at is not None, r.failures, r.last_error)}
                for r in rows
            ]  # fmt: skip
        if json:
            emit(found)
            return
        shown = table("", "Subscription", "To", "As", "Of", "State")
        for f in found:
            shown.add_row(*(plain(f[k]) for k in ("name", "target", "format", "actions", "state")))
        out.print(shown)


@subscriptions_app.command("remove")
def remove(name: Name, by: By = None, json: Json = False) -> None:
    """Tell it nothing more."""
    with speaking():
        from asset_store import telling
        from flows.wiring import open_store, os_user

        with open_store() as store, store.database.transaction() as session:
            telling.unsubscribe(session, name, by or os_user())
        emit({"name": name, "removed": True}) if json else out.print(f"{plain(name)} is told nothing more")


def _state(disabled: bool, failures: int, why: str) -> str:
    if disabled:
        return f"switched off: {why}"
    return f"failed {failures} times: {why}" if failures else "in order"
