"""`onmodel people …` and `onmodel keys …`: who may do what, sign-in links, and keys of programs."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

import typer

from asset_store.people.permissions import Action
from asset_store.tables import Role
from studio.cli.app import By, Json, app
from studio.cli.console import emit, out, plain, speaking, table

people_app = typer.Typer(no_args_is_help=True, help="Who may sign in, and what they may do.")
keys_app = typer.Typer(no_args_is_help=True, help="Keys of programs that use the API.")
app.add_typer(people_app, name="people")
app.add_typer(keys_app, name="keys")

Handle = Annotated[str, typer.Argument(help="Who: an e-mail address or a local name.")]
RoleName = Annotated[Role, typer.Argument(help="What they may do; docs/people.md has the table.")]
ForBrand = Annotated[str | None, typer.Option("--brand", help="For this brand alone; default: for all.")]
ForStage = Annotated[str | None, typer.Option("--stage", help="Of a reviewer: at this stage alone.")]


@people_app.command("add")
def people_add(
    handle: Handle, name: Annotated[str, typer.Option(help="What pages call them.")] = "", by: By = None,
    json: Json = False,
) -> None:  # fmt: skip
    """Add somebody, who may do nothing until a role is granted."""
    with speaking():
        from asset_store.people import accounts
        from flows.wiring import open_store, os_user

        with open_store() as store, store.database.transaction() as session:
            person = accounts.add_person(session, handle, name, by or os_user())
        answer = {"handle": person.handle, "name": person.name}
        emit(answer) if json else out.print(
            f"{plain(person.handle)} is added; `onmodel people grant` gives them a role"
        )


@people_app.command("list")
def people_list(json: Json = False) -> None:
    """Everybody, with their roles."""
    with speaking():
        from asset_store.people import accounts
        from asset_store.tables import Brand
        from flows.wiring import open_store

        with open_store() as store, store.database.transaction() as session:
            brands = {brand.id: brand.name for brand in session.query(Brand)}
            found: list[dict[str, Any]] = [
                {
                    "handle": p.handle,
                    "name": p.name,
                    "disabled": p.disabled_at is not None,
                    "roles": [
                        {
                            "role": g.role.value,
                            "brand": brands.get(g.brand_id) if g.brand_id else None,
                            "stage": g.stage,
                        }
                        for g in p.grants
                    ],
                }
                for p in accounts.people(session)
            ]
        if json:
            emit(found)
            return
        shown = table("", "Who", "Name", "Roles")
        for p in found:
            roles = "; ".join(
                g["role"] + (f" at {g['stage']}" if g["stage"] else "") + (f" of {g['brand']}" if g["brand"] else "")
                for g in p["roles"]
            )
            name = plain(p["name"]) + (" [red](disabled)[/]" if p["disabled"] else "")
            shown.add_row(plain(p["handle"]), name, plain(roles) or "[dim]none[/]")
        out.print(shown)


@people_app.command("grant")
def people_grant(
    handle: Handle, role: RoleName, brand: ForBrand = None, stage: ForStage = None, by: By = None, json: Json = False
) -> None:
    """Give somebody a role, for a brand or for all."""
    _change(handle, role, brand, stage, by, json, give=True)


@people_app.command("revoke")
def people_revoke(
    handle: Handle, role: RoleName, brand: ForBrand = None, stage: ForStage = None, by: By = None, json: Json = False
) -> None:
    """Take a role back."""
    _change(handle, role, brand, stage, by, json, give=False)


def _change(
    handle: str, role: Role, brand: str | None, stage: str | None, by: str | None, json: bool, *, give: bool
) -> None:
    with speaking():
        from asset_store.people import accounts
        from flows.wiring import open_store, os_user

        with open_store() as store, store.database.transaction() as session:
            change = accounts.grant if give else accounts.revoke
            change(session, handle, role, by or os_user(), brand, stage)
        answer = {"handle": handle, "role": role.value, "brand": brand, "stage": stage, "granted": give}
        told = f"{role}" + (f" at {stage}" if stage else "") + (f" of {brand}" if brand else "")
        emit(answer) if json else out.print(f"{plain(handle)} is {'now' if give else 'no longer'} {plain(told)}")


@people_app.command("disable")
def people_disable(
    handle: Handle,
    undo: Annotated[bool, typer.Option("--undo", help="Let them in again.")] = False,
    by: By = None,
    json: Json = False,
) -> None:
    """Let somebody in no more: their sessions end and their keys stop at once. What they did stays theirs."""
    with speaking():
        from asset_store.people import accounts
        from flows.wiring import open_store, os_user

        with open_store() as store, store.database.transaction() as session:
            person = (accounts.enable if undo else accounts.disable)(session, handle, by or os_user())
        answer = {"handle": person.handle, "disabled": not undo}
        emit(answer) if json else out.print(f"{plain(person.handle)} may sign in {'again' if undo else 'no more'}")


@people_app.command("unlink")
def people_unlink(handle: Handle, by: By = None, json: Json = False) -> None:
    """Forget which account of the company's sign-in somebody is; the next one with their e-mail address is linked."""
    with speaking():
        from asset_store.people import accounts
        from flows.wiring import open_store, os_user

        with open_store() as store, store.database.transaction() as session:
            person = accounts.unlink(session, handle, by or os_user())
        answer = {"handle": person.handle, "linked": False}
        emit(answer) if json else out.print(f"{plain(person.handle)} is linked to no account")


@people_app.command("link")
def people_link(
    handle: Handle,
    minutes: Annotated[int, typer.Option(min=1, max=1440, help="How long it may be used.")] = 15,
    address: Annotated[str, typer.Option(help="Where the pages are.")] = "http://127.0.0.1:8400",
    by: By = None,
    json: Json = False,
) -> None:
    """Print a link that signs somebody in, once. Give it to nobody else."""
    with speaking():
        from asset_store.people import passes
        from flows.wiring import open_store, os_user

        with open_store() as store, store.database.transaction() as session:
            token = passes.make_link(session, handle, by or os_user(), timedelta(minutes=minutes))
        link = f"{address.rstrip('/')}/sign-in#{token}"
        emit({"handle": handle, "link": link, "minutes": minutes}) if json else out.print(plain(link))


@keys_app.command("make")
def keys_make(
    name: Annotated[str, typer.Argument(help="What it is for, such as calendar-sync.")],
    owner: Annotated[str, typer.Option(help="Whose it is: it may nothing that they may not.")],
    scope: Annotated[list[Action], typer.Option(help="What it may do; several times for more.")],
    days: Annotated[int, typer.Option(min=1, max=365, help="How long it lasts.")] = 90,
    brand: ForBrand = None,
    agent: Annotated[
        bool, typer.Option("--agent", help="An AI agent's: view, comment, produce and assign at most.")
    ] = False,
    by: By = None,
    json: Json = False,
) -> None:
    """Make a key for a program, and print its secret this once. A key never approves."""
    with speaking():
        from asset_store.people import passes
        from flows.wiring import open_store, os_user

        with open_store() as store, store.database.transaction() as session:
            key, secret = passes.make_key(
                session, owner, name, set(scope), timedelta(days=days), by or os_user(), brand, agent
            )
        if json:
            told = {"expires_at": key.expires_at.isoformat(), "scopes": key.scopes, "agent": key.agent}
            emit({"name": key.name, "secret": secret, **told})
            return
        out.print(f"{plain(key.name)} lasts until {key.expires_at:%Y-%m-%d}. Its secret is shown this once:")
        out.print(plain(secret))


@keys_app.command("list")
def keys_list(json: Json = False) -> None:
    """The keys that there are, and when they were last used."""
    with speaking():
        from asset_store.people import passes
        from flows.wiring import open_store

        with open_store() as store, store.database.transaction() as session:
            found: list[dict[str, Any]] = [
                {
                    "name": k.name,
                    "owner": k.owner.handle,
                    "scopes": k.scopes,
                    "agent": k.agent,
                    "expires_at": k.expires_at.isoformat(),
                    "revoked": k.revoked_at is not None,
                    "used_at": k.used_at.isoformat() if k.used_at else None,
                }
                for k in passes.keys(session)
            ]
        if json:
            emit(found)
            return
        shown = table("", "Key", "Owner", "May", "Until", "Last used")
        for k in found:
            until = "[red]revoked[/]" if k["revoked"] else k["expires_at"][:10]
            used = (k["used_at"] or "never")[:16]
            shown.add_row(
                plain(k["name"]) + (" [dim]an agent's[/]" if k["agent"] else ""),
                plain(k["owner"]),
                ", ".join(k["scopes"]),
                until,
                used,
            )
        out.print(shown)


@keys_app.command("revoke")
def keys_revoke(
    name: Annotated[str, typer.Argument(help="The key's name.")], by: By = None, json: Json = False
) -> None:
    """Stop a key at once."""
    with speaking():
        from asset_store.people import passes
        from flows.wiring import open_store, os_user

        with open_store() as store, store.database.transaction() as session:
            key = passes.revoke_key(session, name, by or os_user())
        emit({"name": key.name, "revoked": True}) if json else out.print(f"{plain(key.name)} is revoked")
