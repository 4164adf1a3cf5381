"""`onmodel suspend | reinstate | withdraw`: taking a released picture back, and what needs a second person."""

from __future__ import annotations

from typing import Annotated

import typer

from asset_store.reviewing.states import AvailabilityEvent
from studio.cli.app import By, Json, app
from studio.cli.console import emit, out, plain, speaking

AssetId = Annotated[str, typer.Argument(help="An asset, by the start of its id.")]
Confirm = Annotated[bool, typer.Option("--confirm", help="Be the second person who says yes.")]
Decline = Annotated[bool, typer.Option("--decline", help="Leave it suspended.")]
Reason = Annotated[str, typer.Option("--reason", "-m", help="Why; required of who asks.")]


@app.command()
def suspend(
    asset_id: AssetId,
    reason: Annotated[str, typer.Option("--reason", "-m", help="Why it may not be used now.")],
    by: By = None,
    json: Json = False,
) -> None:
    """Take a released asset out of use at once, until it is reinstated or withdrawn."""
    with speaking():
        from asset_store.reviewing.queue import find_asset
        from asset_store.rights import availability
        from flows.wiring import open_store, os_user

        with open_store() as store, store.database.transaction() as session:
            asset = availability.suspend(session, find_asset(session, asset_id).id, by or os_user(), reason)
        answer = {"asset": str(asset.id), "availability": asset.availability.value}
        emit(answer) if json else out.print(f"{answer['asset'][:8]} is now [bold]{answer['availability']}[/]")


@app.command()
def reinstate(
    asset_id: AssetId, reason: Reason = "", confirm: Confirm = False, decline: Decline = False, by: By = None,
    json: Json = False,
) -> None:  # fmt: skip
    """Have a suspended asset released again: one person asks, a second one confirms."""
    _by_two(AvailabilityEvent.REINSTATE, asset_id, reason, confirm, decline, by, json)


@app.command()
def withdraw(
    asset_id: AssetId, reason: Reason = "", confirm: Confirm = False, decline: Decline = False, by: By = None,
    json: Json = False,
) -> None:  # fmt: skip
    """Withdraw a suspended asset for good: one person asks, a second one confirms."""
    _by_two(AvailabilityEvent.WITHDRAW, asset_id, reason, confirm, decline, by, json)


def _by_two(
    event: AvailabilityEvent, asset_id: str, reason: str, confirm: bool, decline: bool, by: str | None, json: bool
) -> None:
    with speaking():
        from asset_store.errors import NotFound
        from asset_store.reviewing.queue import find_asset
        from asset_store.rights import availability
        from flows.wiring import open_store, os_user

        who = by or os_user()
        with open_store() as store, store.database.transaction() as session:
            asset = find_asset(session, asset_id)
            asked = availability.open_proposal(session, asset.id)
            if not confirm and not decline:
                asked = availability.propose(session, asset.id, event, who, reason)
            elif asked is None or asked.event is not event:
                raise NotFound(f"proposal to {event}", asset_id, f"Ask first: onmodel {event} {asset_id} --reason …")
            elif confirm:
                asset = availability.confirm(session, asked.id, who)
            else:
                asset = availability.decline(session, asked.id, who)
            answer = {
                "asset": str(asset.id),
                "availability": asset.availability.value,
                "proposal": {"event": event.value, "state": asked.state.value, "by": asked.by, "impact": asked.impact},
            }
        if json:
            emit(answer)
            return
        if not confirm and not decline:
            for sent in asked.impact["deliveries"]:
                out.print(f"  was delivered to {plain(sent['address'])} ({plain(sent['channel'])})")
            for used in asked.impact["references"]:
                out.print(f"  came of {plain(used['key'])}, which is {used['state']}")
            out.print(f"{str(asset.id)[:8]}: asked to {event}; another person confirms with --confirm")
            return
        out.print(f"{str(asset.id)[:8]} is now [bold]{asset.availability.value}[/]")
