"""Tools that find what there is to make pictures of."""

from __future__ import annotations

import base64
import binascii
from itertools import islice
from typing import Annotated

from mcp.types import CallToolResult
from pydantic import Field

from studio.agents.telling import WEBP, Caller, Characters, Reference, References, with_pictures
from studio.client import Client, ClientError

Brand = Annotated[str | None, Field(description="Only of this brand.", max_length=200)]
MOST_SHOWN = 8


def who_am_i(client: Client) -> Caller:
    """Who you act as, and what your key may do for which brand. Ask this first when something was refused."""
    me = client.me()
    return Caller(actor=me.actor, actions=me.actions)


def find_characters(client: Client, brand: Brand = None, limit: Annotated[int, Field(ge=1, le=200)] = 50) -> Characters:
    """The brands' characters, each with its description, its rules, how many references of each role may be used today, and its
    pictures by review state. Start here: other tools take `brand` and `name` as they stand in the answer."""
    found = list(islice(client.characters(brand=brand), limit + 1))
    return Characters(characters=found[:limit], more=len(found) > limit)


def find_references(
    client: Client,
    text: Annotated[str | None, Field(description="What they show, in a few words.", max_length=300)] = None,
    picture: Annotated[
        str | None, Field(description="A picture that they look like, as base64; 1 MB at most.", max_length=1_400_000)
    ] = None,
    brand: Brand = None,
    character: Annotated[str | None, Field(description="Only of this character.", max_length=200)] = None,
    also_unusable: Annotated[
        bool, Field(description="Also those that may not be used today, with the reason.")
    ] = False,
    limit: Annotated[int, Field(ge=1, le=50)] = 8,
) -> Annotated[CallToolResult, References]:
    """Approved references in the libraries, by words or by a picture, the nearest first, with small pictures of the first eight. Use
    it to see how a character looks before you ask for pictures of it. Give `text` or `picture`."""
    if (text is None) == (picture is None):
        raise ClientError("give `text` or `picture`, one of them", "Say in a few words what the references show.")
    found = client.find_references(
        text=text, picture=None if picture is None else _decoded(picture), brand=brand, character=character,
        usable=not also_unusable, limit=limit,
    )  # fmt: skip
    shown = ((f"reference {r.id}", client.reference_thumbnail(r.id), WEBP) for r in found[:MOST_SHOWN])
    return with_pictures(References(found=[Reference.of(r) for r in found]), shown)


def _decoded(picture: str) -> bytes:
    try:
        return base64.b64decode(picture.partition("base64,")[2] or picture, validate=True)
    except (binascii.Error, ValueError):
        raise ClientError("`picture` is not base64", "Encode the bytes of a PNG, JPEG or WebP file.") from None
