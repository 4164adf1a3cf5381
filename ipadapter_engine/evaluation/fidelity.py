"""Is the shipped studio model on model? Its pictures of characters that no training stage saw, read by the judge.

    python -m ipadapter_engine.evaluation.fidelity

Prints, per attribute, the share of pictures that the judge reads as the truth: with the adapter at scale 1, and at
scale 0, where the prompt alone speaks and identity must be near chance. Beside them stand the judge's own accuracy on
rendered pictures (the ceiling) and chance. One JSON object a line; exits 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from ipadapter_engine.checkpoints import EMBEDDED
from ipadapter_engine.evaluation.judge import Judge, accuracy
from ipadapter_engine.pipeline import Engine
from ipadapter_engine.requests import GeneratedImage, GenerationRequest
from ipadapter_engine.training.captions import prompt_for
from ipadapter_engine.training.dataset import rendered
from ipadapter_engine.training.mascots import (
    ATTRIBUTES,
    Identity,
    Staging,
    held_out_identities,
    random_staging,
    render,
    truth,
)

CHARACTERS = 100
PICTURES = 3  # a character
BARS = {"shape": 0.75, "colour": 0.75, "scene": 0.80}  # at scale 1
IDENTITY = ("shape", "colour", "ears", "pattern", "accessory")
NEAR_CHANCE = 0.10  # an identity attribute at scale 0 lies at most this much over chance
CONFIDENCE_Z = 1.96


@dataclass(frozen=True)
class Sample:
    """What is asked for: a character it never saw, doing something somewhere, and the noise's seed."""

    who: Identity
    staging: Staging
    seed: int


def samples(characters: int = CHARACTERS, pictures: int = PICTURES, seed: int = 11) -> list[Sample]:
    rng = random.Random(seed)
    return [
        Sample(who, random_staging(rng), 1000 * i + n)
        for i, who in enumerate(held_out_identities()[:characters])
        for n in range(pictures)
    ]


def open_judge(file: Path = EMBEDDED / "judge.safetensors") -> Judge:
    judge = Judge()
    judge.load_state_dict({k: v.float() for k, v in load_file(file).items()})
    return judge.eval()


def make(engine: Engine, asked: list[Sample], scale: float) -> list[GeneratedImage]:
    """One picture a sample; the reference is the character's studio portrait, the prompt never names who it is."""
    portraits = {s.who: render(s.who, Staging(), size_px=256, seed=5) for s in asked}
    references = {who: engine.look_at(picture) for who, picture in portraits.items()}
    return engine.generate(
        [GenerationRequest(prompt_for(s.staging), s.seed, (references[s.who],), scale=scale) for s in asked]
    )


def read_right(judge: Judge, made: list[GeneratedImage], asked: list[Sample]) -> np.ndarray:
    """Booleans (pictures, attributes): whether the judge reads the truth."""
    stack = np.stack([m.pixels for m in made])
    pictures = torch.from_numpy(stack).permute(0, 3, 1, 2).float() / 127.5 - 1
    return judge.read(pictures) == np.array([truth(s.who, s.staging) for s in asked])


def interval(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, 1927)."""
    z2 = CONFIDENCE_Z**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = CONFIDENCE_Z * math.sqrt(share * (1 - share) / count + z2 / (4 * count * count)) / (1 + z2 / count)
    return round(centre - half, 3), round(centre + half, 3)


def evaluate(characters: int = CHARACTERS, sheet: Path | None = None) -> list[dict[str, object]]:
    """One row an attribute and scale, with `target` and `met` where there is a bar."""
    engine, judge, asked = Engine.open(), open_judge(), samples(characters)
    ceiling = accuracy(judge, rendered(1000, seed=2, identities=held_out_identities()))
    rows: list[dict[str, object]] = []
    for scale in (1.0, 0.0):
        made = make(engine, asked, scale)
        right = read_right(judge, made, asked)
        if sheet is not None and scale == 1.0:
            draw_sheet(made, asked).save(sheet)
        for k, attribute in enumerate(ATTRIBUTES):
            share, chance = float(right[:, k].mean()), 1 / len(attribute.values)
            row: dict[str, object] = {
                "name": f"{attribute.name} right at scale {scale:g}",
                "value": round(share, 3),
                "interval_95": interval(share, len(asked)),
                "chance": round(chance, 3),
                "judge_ceiling": round(ceiling[attribute.name], 3),
                "pictures": len(asked),
            }
            if scale == 1.0 and attribute.name in BARS:
                row |= {"target": f">= {BARS[attribute.name]}", "met": share >= BARS[attribute.name]}
            elif scale == 0.0 and attribute.name in ("shape", "colour"):
                row |= {"target": f"<= {chance + NEAR_CHANCE:.3f}", "met": share <= chance + NEAR_CHANCE}
            elif scale == 0.0 and attribute.name == "scene":
                row |= {"target": f">= {BARS['scene']}", "met": share >= BARS["scene"]}
            rows.append(row)
    return rows


def draw_sheet(made: list[GeneratedImage], asked: list[Sample], count: int = 24) -> Image.Image:
    """Pairs of reference and picture for the first `count` characters."""
    tile, columns = 128, 6
    sheet = Image.new("RGB", (columns * (2 * tile + 16) + 16, math.ceil(count / columns) * (tile + 16) + 16), "white")
    for i in range(min(count, len(made) // PICTURES)):
        x, y = 16 + (i % columns) * (2 * tile + 16), 16 + (i // columns) * (tile + 16)
        sheet.paste(render(asked[i * PICTURES].who, Staging(), size_px=tile, seed=5), (x, y))
        sheet.paste(made[i * PICTURES].image.resize((tile, tile), Image.Resampling.BICUBIC), (x + tile, y))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description="Judge the shipped studio model on characters it never saw.")
    parser.add_argument("--characters", type=int, default=CHARACTERS)
    parser.add_argument("--sheet", type=Path, help="write a sheet of references and pictures")
    options = parser.parse_args()
    rows = evaluate(options.characters, options.sheet)
    for row in rows:
        print(json.dumps(row))
    sys.exit(0 if all(row.get("met", True) for row in rows) else 1)


if __name__ == "__main__":
    main()
