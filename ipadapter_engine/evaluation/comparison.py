"""One table: how well each method brings a subject back, what it costs to set up, and what a picture costs.

All methods are measured in one run on the same subjects, prompts and seeds, in turn and in an order of its own for each
subject, so that none has the machine to itself. Values are means over pictures with their interval over subjects, times
are medians. Pictures that were made before, by the same models from the same request, are not made again.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from ipadapter_engine.engines import PictureEngine
from ipadapter_engine.evaluation.making import Maker
from ipadapter_engine.evaluation.measuring import Measures, References, Tally, measure, measure_themselves
from ipadapter_engine.evaluation.methods import Contestant, Making, Method, TrainedSubject, Training, pixels_sha256
from ipadapter_engine.evaluation.picture_cache import PictureCache
from ipadapter_engine.evaluation.subjects import Subject
from ipadapter_engine.pipeline import Engine
from ipadapter_engine.prompts import ReferencePrompt

SHEET_SUBJECTS = 8
THEMSELVES = "references"  # the row of the references, or of the renderer's own drawings: what can be reached


@dataclass(frozen=True)
class Compared:
    """rows: one a method, as JSON; strips: reference and one picture a method, of the first subjects.

    trained: by subject, the models that were trained; subjects_sha256: of names, prompts, seeds and references.
    machine: what the times were measured on, with at most `max_batch` pictures at once.
    """

    rows: list[dict[str, Any]]
    strips: list[tuple[list[Image.Image], str]]
    made: int
    found: int
    trained: dict[str, TrainedSubject]
    subjects_sha256: str
    machine: str
    max_batch: int


def compare(
    engine: Engine,
    contestants: Sequence[Contestant],
    subjects: Sequence[Subject],
    measures: Measures,
    cache: PictureCache,
    *,
    making: Making,
    train: Training | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Compared:
    """Make and measure every shot of every subject by every method.

    Raises ValueError where a method has a LoRA and `train` is not given, GenerationFailed for a picture that is NaN.
    """
    maker = Maker(engine, cache, making)
    makers = {c.method: maker if c.engine is None else Maker(c.engine, cache, _of_another(making)) for c in contestants}
    tallies = {c.method: Tally(shared_bytes=c.shared_bytes) for c in contestants}
    themselves, strips, digest = Tally(), [], hashlib.sha256()
    models: dict[str, TrainedSubject] = {}
    side_px = making.size_px or engine.family.size_px
    done, of = 0, len(contestants) * sum(len(s.shots) for s in subjects)
    for number, subject in enumerate(subjects):
        references = subject.references()
        digest.update(_told(subject, references))
        against = References.of(references, measures)
        trained, loading_s = None, 0.0
        if any(c.method.trained for c in contestants):
            if train is None:
                raise ValueError("a method with a model of each subject is compared, and `train` is not given")
            trained = models[subject.name] = train(subject, references)
            loading_s = engine.load_character(trained.model)  # once: it is no part of any picture's time
        tiles: dict[Method, Image.Image] = {}
        for contestant in random.Random(number).sample(list(contestants), len(contestants)):
            tally, model = tallies[contestant.method], trained if contestant.method.trained else None
            own = makers[contestant.method]
            heard, seconds, size = _heard(own.engine, contestant, references[: making.heard])
            if model is not None:
                seconds, size = seconds + model.seconds + loading_s, size + model.size_bytes
            pictures = own.make(subject, heard, model)
            tally.add_time("setup_s", [seconds])
            tally.add_time("image_s", own.times_of(pictures))
            tally.subject_bytes.append(size)
            images = [p.image if own is maker else _as_all_others(p.image, side_px) for p in pictures]
            measure(tally, images, subject, against, measures)
            tiles[contestant.method] = images[0]
            done += len(pictures)
            if on_progress is not None:
                on_progress(done, of)
        measure_themselves(themselves, references, subject, against, measures, engine.family.size_px)
        if number < SHEET_SUBJECTS:
            shown = subject.shots[0].said(subject.words) or subject.shots[0].caption or ""
            strips.append(([references[0], *(tiles[c.method] for c in contestants)], f"{subject.name}: {shown}"))
    text = tallies.get(Method.TEXT)
    rows = [
        tallies[c.method].as_json(c.method.value, c.label, None if c.method is Method.TEXT else text)
        for c in contestants
    ]
    if themselves.sums:
        rows.append(themselves.as_json(THEMSELVES, "drawn by the renderer" if measures.judge else "the references"))
    distinct = list({id(m): m for m in (maker, *makers.values())}.values())
    made, found = sum(m.made for m in distinct), sum(m.found for m in distinct)
    return Compared(rows, strips, made, found, models, digest.hexdigest(), maker.machine, maker.max_batch)


def _of_another(making: Making) -> Making:
    """How another engine makes its pictures: its family's own numbers, but for the size and steps that were asked for."""
    return replace(making, scale=1.0, guidance=None, scheduler=None, steps=making.asked_steps, size_px=making.asked_px)


def _as_all_others(image: Image.Image, side_px: int) -> Image.Image:
    """A picture of another engine's own size at the size that all others have, so that all are measured alike."""
    return image if image.width == side_px else image.resize((side_px, side_px), Image.Resampling.LANCZOS)


def _heard(
    engine: PictureEngine, contestant: Contestant, references: Sequence[Image.Image]
) -> tuple[tuple[ReferencePrompt, ...], float, int]:
    """What the adapter hears, the seconds until it could, and the bytes that are kept of it."""
    if not contestant.method.hears:
        return (), 0.0, 0
    began = time.perf_counter()
    heard = tuple(engine.look_at(r, adapter=contestant.adapter) for r in references)
    return heard, time.perf_counter() - began, sum(map(_bytes_of, heard))


def _bytes_of(reference: ReferencePrompt) -> int:
    """What is kept of a reference: its embedding, or its pixels."""
    kept = reference.embedding if reference.embedding is not None else reference.picture
    return 0 if kept is None else int(kept.nbytes)


def _told(subject: Subject, references: Sequence[Image.Image]) -> bytes:
    """All of a subject that determines its figures, as one line."""
    told = {
        "name": subject.name,
        "words": subject.words,
        "shots": [[s.prompt, s.seed, s.caption] for s in subject.shots],
        "references": [pixels_sha256(r) for r in references],
    }
    return json.dumps(told, sort_keys=True, separators=(",", ":")).encode() + b"\n"
