"""Is the shipped studio model on model? Its pictures of characters that no training stage saw, read by the judge.

    python -m ipadapter_engine.evaluation.fidelity [--sheet sheet.png] [--renderer other]

For every attribute, the share of pictures that the judge reads as the truth: with the adapter at its default scale,
and at scale 0, where the prompt alone speaks and identity must be near chance. Beside each stands the ceiling, the
judge's accuracy on the renderer's own drawings of the same characters in the same stagings: what a picture from
behind cannot show is missing from both. One JSON object a line; exits 1 if a target is missed.

Targets are shares of the ceiling: identity over all its attributes 0.90 and each of them 0.80; view, pose, expression
and scene together 0.90 and each of them 0.80. What following the reference costs in following the words is the paired
row: prompt at the default scale less prompt at scale 0, on the same samples. Where the model has a pose ControlNet, the
same samples are made once more with the pose in a skeleton and not in the prompt: the pose must be read in 0.90 of what it
is read in the drawings, and identity stay within 0.03 of what it is without.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ipadapter_engine.checkpoints import EMBEDDED, CheckpointPaths
from ipadapter_engine.errors import EngineError
from ipadapter_engine.evaluation import other_drawing, sheets
from ipadapter_engine.evaluation.characters import (
    IDENTITY,
    PROMPT,
    Portrait,
    Sample,
    columns,
    drawn,
    portrait,
    samples,
    truths,
)
from ipadapter_engine.evaluation.figures import Figure, mean_of, share_of
from ipadapter_engine.evaluation.judge import Judge
from ipadapter_engine.evaluation.making import generated
from ipadapter_engine.evaluation.reading import JUDGE_FILE, attributes_right, open_judge
from ipadapter_engine.pipeline import Engine
from ipadapter_engine.prompts import ControlPrompt
from ipadapter_engine.requests import GeneratedImage, GenerationRequest
from ipadapter_engine.training.captions import prompt_for
from ipadapter_engine.training.drawing import pose_picture
from ipadapter_engine.training.mascots import ATTRIBUTES

CHARACTERS, PICTURES = 200, 2
DEFAULT_SCALE = GenerationRequest.scale
MEAN_TARGET, EACH_TARGET = 0.90, 0.80  # shares of the ceiling
POSE_CONTROL, CONTROL_COST = "pose", 0.03  # the ControlNet's kind, and what identity may lose by it
NEAR_CHANCE = 0.10  # identity at scale 0 lies at most this much over chance
SHEET_CHARACTERS = 24
READ = "share of attributes read"  # the unit of means over attributes
ROUNDING = 1e-9  # a value that is the target is not missed by its last bit
RENDERERS: dict[str, Portrait] = {"own": portrait, "other": other_drawing.render_portrait}


@dataclass(frozen=True)
class Row:
    """One figure. `target` is what `value` must reach, or at scale 0 must not pass; None where nothing is asked."""

    name: str
    value: float
    interval_95: tuple[float, float] | None
    ceiling: float | None
    chance: float | None
    target: str | None = None
    met: bool | None = None
    unit: str = "share of pictures"

    def as_json(self) -> dict[str, object]:
        figure = Figure(self.value, self.interval_95).as_json()
        told = {k: None if v is None else round(v, 4) for k, v in (("ceiling", self.ceiling), ("chance", self.chance))}
        return {"name": self.name, "value": figure["value"], "unit": self.unit, "interval_95": figure["interval_95"],
                **told, "target": self.target, "met": self.met}  # fmt: skip


def make(
    engine: Engine, asked: Sequence[Sample], scale: float = DEFAULT_SCALE, draw: Portrait = portrait,
    *, skeletons: bool = False,
) -> list[GeneratedImage]:  # fmt: skip
    """One picture a sample; the reference is the character's portrait, and the prompt never names who it is, nor with
    `skeletons` the pose.

    Raises GenerationFailed where a picture is NaN.
    """
    references = {}
    for who in dict.fromkeys(s.who for s in asked):
        references[who] = engine.look_at(draw(who, 2 * engine.family.size_px))
    return generated(
        engine,
        [
            GenerationRequest(
                prompt_for(s.staging, pose=not skeletons), s.seed, (references[s.who],), scale=scale,
                controls=(_skeleton(s, engine.family.size_px),) if skeletons else (),
            )
            for s in asked
        ],
    )  # fmt: skip


def _skeleton(sample: Sample, size_px: int) -> ControlPrompt:
    return ControlPrompt(np.asarray(pose_picture(sample.staging, size_px=size_px, seed=sample.seed)), POSE_CONTROL)


def read_right(judge: Judge, made: Sequence[GeneratedImage], asked: Sequence[Sample]) -> np.ndarray:
    """Booleans (pictures, attributes): whether the judge reads the truth."""
    return attributes_right(judge, np.stack([m.pixels for m in made]), truths(asked))


def rows_of(right: np.ndarray, ceiling: np.ndarray, scale: float, at_default: bool) -> list[Row]:
    """Booleans (characters, pictures, attributes) of the pictures and of the drawings of the same samples."""
    told, suffix = [], f" at scale {scale:g}"
    for kind, names in (("identity", IDENTITY), ("prompt", PROMPT)):
        places = columns(names)
        chance = float(np.mean([1 / len(ATTRIBUTES[k].values) for k in places]))
        best = float(ceiling[..., places].mean())
        figure = mean_of(right[..., places].mean((1, 2)), share=True)
        told.append(_row(f"{kind}, mean{suffix}", figure, best, chance, _mean_target(kind, at_default), READ))
    for k, attribute in enumerate(ATTRIBUTES):
        chance = 1 / len(attribute.values)
        target = _each_target(attribute.name, at_default)
        figure = share_of(right[..., k])
        told.append(_row(f"{attribute.name}{suffix}", figure, float(ceiling[..., k].mean()), chance, target))
    return told


def paired_row(right: np.ndarray, silent: np.ndarray) -> Row:
    """What the adapter costs the prompt: booleans (characters, pictures, attributes) of the same samples with the
    adapter at its default scale and at 0."""
    places = columns(PROMPT)
    less = right[..., places].mean((1, 2)) - silent[..., places].mean((1, 2))
    figure = mean_of(less)
    return Row("prompt, default less scale 0", figure.value, figure.interval_95, None, None, unit=f"{READ}, difference")


def control_rows(steered: np.ndarray, right: np.ndarray, ceiling: np.ndarray) -> list[Row]:
    """Whether skeletons are followed, and what they cost identity: booleans (characters, pictures, attributes) of the
    samples with a skeleton in place of the pose's word, without one, and of the drawings."""
    pose = columns(["pose"])[0]
    chance = 1 / len(ATTRIBUTES[pose].values)
    followed = _row("pose by skeleton", share_of(steered[..., pose]), float(ceiling[..., pose].mean()), chance,
                    MEAN_TARGET, Row.unit)  # fmt: skip
    places = columns(IDENTITY)
    cost = mean_of(steered[..., places].mean((1, 2)) - right[..., places].mean((1, 2)))
    kept = Row(
        "identity, with skeleton less without", cost.value, cost.interval_95, None, None,
        f">= {-CONTROL_COST:g}", cost.value >= -CONTROL_COST - ROUNDING, f"{READ}, difference",
    )  # fmt: skip
    return [followed, kept]


def _mean_target(kind: str, at_default: bool) -> float | None:
    """The share of the ceiling that is asked for; 0 asks for no more than near chance."""
    if kind == "prompt":
        return MEAN_TARGET if at_default else None
    return MEAN_TARGET if at_default else 0.0


def _each_target(name: str, at_default: bool) -> float | None:
    if name in IDENTITY:
        return EACH_TARGET if at_default else 0.0
    return EACH_TARGET if name in PROMPT and at_default else None


def _row(name: str, figure: Figure, ceiling: float, chance: float, share: float | None, unit: str = Row.unit) -> Row:
    target, met = None, None
    if share == 0.0:
        target, met = (
            f"<= {chance + NEAR_CHANCE:.3f} (chance + {NEAR_CHANCE:g})",
            figure.value <= chance + NEAR_CHANCE + ROUNDING,
        )
    elif share is not None:
        target, met = f">= {share * ceiling:.3f} ({share:g} of the ceiling)", figure.value >= share * ceiling - ROUNDING
    return Row(name, figure.value, figure.interval_95, ceiling, chance, target, met, unit)


def evaluate(
    engine: Engine,
    judge_file: Path,
    *,
    characters: int = CHARACTERS,
    pictures: int = PICTURES,
    renderer: str = "own",
    sheet: Path | None = None,
) -> list[Row]:
    """Every row of both scales; `renderer` draws the references. Writes `sheet` if asked to."""
    judge, asked, draw = open_judge(judge_file), samples(characters, pictures), RENDERERS[renderer]
    size, shape = engine.family.size_px, (characters, pictures, len(ATTRIBUTES))
    ceiling = attributes_right(judge, drawn(asked, size), truths(asked)).reshape(shape)
    rows: list[Row] = []
    rights = {}
    if renderer != "own":
        rows += _legible(judge, asked[::pictures], draw, size)
    for scale in (DEFAULT_SCALE, 0.0):
        made = make(engine, asked, scale, draw)
        if sheet is not None and scale == DEFAULT_SCALE:
            draw_sheet(made, asked, draw).save(sheet)
        rights[scale] = read_right(judge, made, asked).reshape(shape)
        rows += rows_of(rights[scale], ceiling, scale, scale == DEFAULT_SCALE)
    rows.append(paired_row(rights[DEFAULT_SCALE], rights[0.0]))
    if POSE_CONTROL in engine.checkpoint.controls:
        steered = read_right(judge, make(engine, asked, DEFAULT_SCALE, draw, skeletons=True), asked).reshape(shape)
        rows += control_rows(steered, rights[DEFAULT_SCALE], ceiling)
    return rows


def _legible(judge: Judge, asked: Sequence[Sample], draw: Portrait, size_px: int) -> list[Row]:
    """What the judge, which knows the first renderer alone, reads in the other's portraits: no ceiling, a comparison."""
    places = columns(IDENTITY)
    who = np.stack([np.asarray(draw(s.who, size_px)) for s in asked])
    right = attributes_right(judge, who, truths(asked))[:, places]
    chance = float(np.mean([1 / len(ATTRIBUTES[k].values) for k in places]))
    figure = mean_of(right.mean(1), share=True)
    name = "identity, mean, read in the other renderer's portraits"
    return [Row(name, figure.value, figure.interval_95, None, chance, unit=READ)]


def draw_sheet(
    made: Sequence[GeneratedImage], asked: Sequence[Sample], draw: Portrait = portrait, count: int = SHEET_CHARACTERS
) -> Image.Image:
    """Reference beside picture for `count` characters drawn by lot, always the same ones; nothing is picked."""
    firsts = [i for i, s in enumerate(asked) if i == 0 or s.who != asked[i - 1].who]
    chosen = sorted(random.Random(24).sample(firsts, min(count, len(firsts))))
    size = made[0].pixels.shape[0]
    return sheets.pairs([(draw(asked[i].who, size), made[i].image, prompt_for(asked[i].staging)) for i in chosen])


def table_of(rows: Sequence[Row]) -> str:
    """The figures of both scales side by side, in Markdown, a line an attribute; under it the others."""
    told, spoken, silent = {row.name: row for row in rows}, f" at scale {DEFAULT_SCALE:g}", f" at scale {0:g}"
    lines = [
        f"| | Scale {DEFAULT_SCALE:g} (95 % interval) | Scale 0 | Chance | Ceiling | Target |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row.name.endswith(spoken):
            name = row.name.removesuffix(spoken)
            numbers = (told[name + silent].value, row.chance, row.ceiling)
            cells = [name.replace("_", " "), _worded(row), *(f"{v:.3f}" for v in numbers), _judged(row)]
            lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    for row in rows:
        if not row.name.endswith((spoken, silent)):
            lines.append(f"- {row.name}: {_worded(row)}" + (f", target {_judged(row)}" if row.target else ""))
    return "\n".join([*lines, ""])


def _worded(row: Row) -> str:
    interval = "" if row.interval_95 is None else " ({:.3f} to {:.3f})".format(*row.interval_95)
    return f"{row.value:.3f}{interval}"


def _judged(row: Row) -> str:
    return "" if row.target is None else f"{row.target.split(' (')[0]}, {'met' if row.met else 'missed'}"


def exit_code(rows: Sequence[Row]) -> int:
    """1 if a target is missed, else 0."""
    return int(any(row.met is False for row in rows))


def main() -> None:
    parser = argparse.ArgumentParser(description="Judge a studio model on characters it never saw.")
    parser.add_argument("--characters", type=int, default=CHARACTERS, help="held-out characters (default %(default)s)")
    parser.add_argument("--pictures", type=int, default=PICTURES, help="pictures of each (default %(default)s)")
    parser.add_argument("--renderer", choices=sorted(RENDERERS), default="own", help="who draws the references")
    parser.add_argument("--sheet", type=Path, help=f"write {SHEET_CHARACTERS} references and pictures, drawn by lot")
    parser.add_argument("--table", type=Path, help="write the figures as a table in Markdown")
    parser.add_argument("--model", type=Path, default=EMBEDDED, help="the studio model's folder, with its judge")
    parser.add_argument("--adapter", type=Path, help="another adapter file, as ip_adapter_plus.safetensors")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    try:
        if options.sheet is not None:
            sheets.check_place(options.sheet)
        if options.table is not None and not options.table.parent.is_dir():
            raise ValueError(f"there is no folder {options.table.parent} for the table")
        engine = Engine.open(CheckpointPaths(options.model, options.adapter), device=options.device)
        rows = evaluate(
            engine, options.model / JUDGE_FILE, characters=options.characters, pictures=options.pictures,
            renderer=options.renderer, sheet=options.sheet,
        )  # fmt: skip
    except (EngineError, ValueError) as error:
        parser.exit(2, f"{error}\n{getattr(error, 'next_step', '')}\n")
    for row in rows:
        print(json.dumps(row.as_json()))
    if options.table is not None:
        options.table.write_text(table_of(rows))
    sys.exit(exit_code(rows))


if __name__ == "__main__":
    main()
