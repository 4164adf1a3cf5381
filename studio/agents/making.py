"""Tools that ask for pictures, and follow what was asked for."""

from __future__ import annotations

import time
from itertools import islice
from typing import Annotated
from uuid import UUID

import anyio
from pydantic import Field

from studio.agents.telling import Runs, RunTold
from studio.agents.turns import aside
from studio.client import Client, SheetWishes

Words = Annotated[list[str], Field(max_length=24)]
Reason = Annotated[
    str, Field(min_length=1, max_length=1000, description="What it is for, in a sentence; it stands in the lineage.")
]
RequestId = Annotated[
    str | None,
    Field(
        max_length=200, min_length=1,
        description="A value of your own for this order: the same order again under it is carried out once.",
    ),
]  # fmt: skip
LONGEST_WAIT_S, LOOKED_THROUGH = 50.0, 500
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 3.0  # between two looks at a run


def make_sheet(
    client: Client,
    brand: Annotated[str, Field(max_length=200)],
    character: Annotated[str, Field(max_length=200)],
    reason: Reason,
    views: Words = ["front", "three-quarter", "side", "back"],  # noqa: B006  (it is a schema's default)
    expressions: Words = [],  # noqa: B006
    poses: Words = [],  # noqa: B006
    outfits: Words = [],  # noqa: B006
    style: Annotated[str | None, Field(max_length=80, description="How it is drawn, such as pixel.")] = None,
    seed: Annotated[int, Field(ge=0, le=2**32 - 1, description="Another one makes other pictures.")] = 0,
    request_id: RequestId = None,
) -> RunTold:
    """Have a model sheet of one character made: a picture for each view, and in the first view for each expression, pose and outfit.
    It costs pictures of the day's quota, one a cell. It answers at once with a run: follow it with get_run, see it with
    look_at_results. The pictures come into review by people."""
    wishes: SheetWishes = {
        "views": views, "expressions": expressions, "poses": poses, "outfits": outfits, "seed": seed
    }  # fmt: skip
    if style is not None:
        wishes["style"] = style
    return RunTold.of(client.make_sheet(brand, character, reason=reason, idempotency_key=request_id, **wishes))


def start_campaign(
    client: Client,
    brief: Annotated[
        str, Field(min_length=1, max_length=200_000, description="The brief as YAML; see its form below.")
    ],
    reason: Reason,
    request_id: RequestId = None,
) -> RunTold:
    """Have the pictures of a brief made, for several shots and characters at once; for one character's sheet use make_sheet. It costs
    pictures of the day's quota. A brief in its smallest form:

    campaign: spring
    brand: lumen
    shots:
      - {name: pip-beach, character: Pip, prompt: "a mascot, waving, front view, on the beach", variants: 2}

    A mistake is told by its line. It answers at once with a run: follow it with get_run, see it with look_at_results."""
    return RunTold.of(client.start_campaign(brief, reason=reason, idempotency_key=request_id))


async def get_run(
    client: Client,
    run_id: UUID,
    wait_s: Annotated[float, Field(ge=0, le=LONGEST_WAIT_S, description="Wait so long for its end; 0 looks once.")] = 0,
) -> RunTold:
    """How far a run is, and what went wrong. Pictures take from seconds to minutes: give `wait_s` and ask again, and do not start the
    same run anew while it goes on."""
    until, pause_s = time.monotonic() + wait_s, FIRST_PAUSE_S
    while True:
        run = await aside(client.run, run_id)
        left_s = until - time.monotonic()
        if run.is_over or left_s <= 0:
            return RunTold.of(run)
        await anyio.sleep(min(pause_s, left_s))  # no thread and no stream is held meanwhile
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def list_runs(
    client: Client,
    only_mine: Annotated[bool, Field(description="Those that you asked for yourself.")] = True,
    limit: Annotated[int, Field(ge=1, le=100)] = 20,
) -> Runs:
    """Runs that were asked for, the newest first. Use it to find a run whose id you do not have."""
    actor = client.me().actor
    looked = islice(client.runs(), LOOKED_THROUGH)
    return Runs(
        runs=[RunTold.of(r) for r in islice((r for r in looked if not only_mine or r.requested_by == actor), limit)]
    )


def cancel_run(client: Client, run_id: UUID) -> RunTold:
    """End a run that you asked for yourself: what is not made yet is not made, what was made stays. Others' runs are refused."""
    return RunTold.of(client.cancel(run_id))
