"""A contact sheet: a row a shot, the references left, the pictures made from them right, with what the checks found."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from sqlalchemy import select

from asset_store.tables import Asset, Brand, Campaign, CheckOutcome, Job, Library, Reference, ReferenceState
from flows.loading import picture_of
from flows.recipe_keys import BY_MODEL
from flows.wiring import Store

TILE_PX, GAP_PX, MARGIN_PX, LABEL_PX, HEAD_PX = 148, 12, 28, 40, 84
MAX_PICTURES, MAX_REFERENCES, MAX_SHOTS, MAX_NEW = 8, 2, 40, 32
PAPER, INK, FAINT, LINE = (250, 249, 246), (34, 32, 38), (122, 118, 126), (226, 222, 214)
GOOD, WARN, BAD = (38, 132, 82), (196, 128, 18), (196, 52, 52)


@dataclass(frozen=True)
class Tile:
    """A picture and the words below it; `mark` is the colour of the dot before them."""

    image: Image.Image | None
    first: str
    second: str
    mark: tuple[int, int, int]


@dataclass(frozen=True)
class Row:
    title: str
    subtitle: str
    references: list[Tile]
    pictures: list[Tile]


def compose(title: str, subtitle: str, rows: list[Row]) -> Image.Image:
    """Draw the sheet, RGB. Every row is as wide as the widest."""
    left = max((len(r.references) for r in rows), default=1) or 1
    right = max((len(r.pictures) for r in rows), default=1) or 1
    step = TILE_PX + GAP_PX
    divider_px = MARGIN_PX + left * step + GAP_PX
    width = divider_px + GAP_PX * 2 + right * step + MARGIN_PX - GAP_PX
    row_px = 34 + TILE_PX + LABEL_PX + 18
    sheet = Image.new("RGB", (max(width, 620), HEAD_PX + MARGIN_PX + row_px * len(rows)), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN_PX, 24), title, fill=INK, font=_font(26))
    draw.text((MARGIN_PX, 58), subtitle, fill=FAINT, font=_font(14))
    y = HEAD_PX + 8
    for row in rows:
        draw.line([(MARGIN_PX, y), (sheet.width - MARGIN_PX, y)], fill=LINE, width=1)
        draw.text((MARGIN_PX, y + 9), row.title, fill=INK, font=_font(14))
        x = MARGIN_PX + draw.textlength(row.title + "   ", font=_font(14))
        draw.text((x, y + 9), _fitted(draw, row.subtitle, sheet.width - MARGIN_PX - x, 14), fill=FAINT, font=_font(14))
        top = y + 34
        draw.line([(divider_px, top), (divider_px, top + TILE_PX)], fill=LINE, width=2)
        for i, tile in enumerate(row.references):
            _draw_tile(sheet, draw, tile, MARGIN_PX + i * step, top)
        for i, tile in enumerate(row.pictures):
            _draw_tile(sheet, draw, tile, divider_px + GAP_PX * 2 + i * step, top)
        y += row_px
    return sheet


def _draw_tile(sheet: Image.Image, draw: ImageDraw.ImageDraw, tile: Tile, x: int, y: int) -> None:
    if tile.image is None:
        draw.rectangle([x, y, x + TILE_PX, y + TILE_PX], outline=LINE)
    else:
        sheet.paste(_fit(tile.image), (x, y))
    draw.ellipse([x, y + TILE_PX + 9, x + 8, y + TILE_PX + 17], fill=tile.mark)
    draw.text((x + 13, y + TILE_PX + 5), _fitted(draw, tile.first, TILE_PX - 13, 12), fill=INK, font=_font(12))
    draw.text((x, y + TILE_PX + 22), _fitted(draw, tile.second, TILE_PX, 12), fill=FAINT, font=_font(12))


def _fit(image: Image.Image) -> Image.Image:
    """The picture on a square tile, whole, enlarged softly when it is small."""
    ratio = TILE_PX / max(image.size)
    size = (max(1, round(image.width * ratio)), max(1, round(image.height * ratio)))
    tile = Image.new("RGB", (TILE_PX, TILE_PX), (240, 238, 233))
    scaled = image.convert("RGB").resize(size, Image.Resampling.BICUBIC if ratio > 1 else Image.Resampling.LANCZOS)
    tile.paste(scaled, ((TILE_PX - size[0]) // 2, (TILE_PX - size[1]) // 2))
    return tile


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _fitted(draw: ImageDraw.ImageDraw, text: str, width: float, size: int) -> str:
    text = "".join(c if c.isprintable() else "?" for c in text)
    if draw.textlength(text, font=_font(size)) <= width:
        return text
    while text and draw.textlength(text + "…", font=_font(size)) > width:
        text = text[:-1]
    return text + "…"


def campaign_sheet(store: Store, campaign_id: uuid.UUID) -> Image.Image | None:
    """The sheet of a campaign as it stands; None before it has a picture."""
    with store.database.transaction() as session:
        campaign = session.get_one(Campaign, campaign_id)
        assets = session.scalars(
            select(Asset).where(Asset.campaign_id == campaign_id).order_by(Asset.shot, Asset.variant)
        ).all()
        if not any(a.current for a in assets):
            return None
        rows = []
        for shot in campaign.brief["shots"][:MAX_SHOTS]:
            mine = [a for a in assets if a.shot == shot["name"]]
            job = session.get_one(Job, mine[0].job_key) if mine else None
            tiles = made_from(store, job.recipe) if job else []
            more = f"  ({len(mine)} variants, {MAX_PICTURES} shown)" if len(mine) > MAX_PICTURES else ""
            title = f"{shot['name']} · {shot['character']}"
            rows.append(Row(title, shot["prompt"] + more, tiles, [_asset_tile(store, a) for a in mine[:MAX_PICTURES]]))
        counts: dict[str, int] = {}
        for a in assets:
            counts[a.review.value] = counts.get(a.review.value, 0) + 1
        told = ", ".join(f"{n} {state}" for state, n in sorted(counts.items()))
        day = campaign.made_at.date().isoformat()
        return compose(f"{campaign.brand.title}: {campaign.name}", f"{day} · {len(assets)} pictures · {told}", rows)


def reference_sheet(store: Store, library_id: uuid.UUID, keys: Sequence[str]) -> Image.Image | None:
    """References of a library at these keys, the first MAX_NEW of them, a row a character; None where there is none."""
    with store.database.transaction() as session:
        library = session.get_one(Library, library_id)
        brand = session.get_one(Brand, library.brand_id)
        asked = select(Reference).where(Reference.library_id == library_id, Reference.key.in_(keys))
        found = session.scalars(asked.where(Reference.state == ReferenceState.ACTIVE).order_by(Reference.key)).all()
        by_character: dict[str, list[Tile]] = {}
        for r in found[:MAX_NEW]:
            who = r.character.name if r.character is not None else "no character"
            by_character.setdefault(who, []).append(Tile(picture_of(store, r.sha256), r.role, r.key, GOOD))
        rows = [
            Row(who if start == 0 else "", "", [], tiles[start : start + MAX_PICTURES])
            for who, tiles in by_character.items()
            for start in range(0, len(tiles), MAX_PICTURES)
        ]
        told = f"{len(found)} new references" + (f", {MAX_NEW} shown" if len(found) > MAX_NEW else "")
        return compose(brand.title or brand.name, told, rows) if rows else None


def made_from(store: Store, recipe: dict[str, Any]) -> list[Tile]:
    """What a shot's pictures follow: some references that say who is shown, then its controls and what it starts from."""
    who: dict[str, dict[str, Any]] = {}  # a reference may be heard by the adapter and have taught the model
    for r in recipe["references"]:
        if "adapter" not in r and "negative" not in r and r.get("part", BY_MODEL) == BY_MODEL:
            who.setdefault(r["sha256"], r)
    shown = list(who.values())[:MAX_REFERENCES]
    tiles = [Tile(picture_of(store, r["sha256"]), r.get("part", "reference"), r["key"], FAINT) for r in shown]
    for control in recipe.get("controls", ()):
        tiles.append(
            Tile(picture_of(store, control["sha256"]), f"control: {control['kind']}", control["picture"], FAINT)
        )
    if (source := recipe.get("source")) is not None:
        tiles.append(Tile(picture_of(store, source["sha256"]), "starts from", source["picture"], FAINT))
    return tiles


def _asset_tile(store: Store, asset: Asset) -> Tile:
    version = asset.current
    if version is None:
        return Tile(None, "not made", "", BAD)
    if asset.removed_at is not None:
        return Tile(None, "removed", f"on {asset.removed_at.date().isoformat()} by the retention policy", FAINT)
    bad = [c for c in version.checks if c.outcome in (CheckOutcome.FAIL, CheckOutcome.NOT_RUN)]
    warned = [c for c in version.checks if c.outcome is CheckOutcome.WARN]
    identity = next((c for c in version.checks if c.name == "identity" and c.value is not None), None)
    like = f"CLIP-I {identity.value:.2f}" if identity is not None else ""
    if bad:
        return Tile(picture_of(store, version.sha256), f"failed: {bad[0].name}", bad[0].message, BAD)
    if warned:
        return Tile(
            picture_of(store, version.sha256), f"warning: {warned[0].name}", f"{like} · {warned[0].message}", WARN
        )
    return Tile(
        picture_of(store, version.sha256), f"{len(version.checks)} checks passed", f"{like} · {str(asset.id)[:8]}", GOOD
    )
