"""What a picture of a subject is worth: read by the judge, compared by CLIP and DINO, and summed up a method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from ipadapter_engine.evaluation.characters import IDENTITY, PROMPT, columns, drawn, truths
from ipadapter_engine.evaluation.figures import Figure, mean_of, median_of
from ipadapter_engine.evaluation.judge import Judge
from ipadapter_engine.evaluation.likeness import Likeness, diversity
from ipadapter_engine.evaluation.reading import attributes_right
from ipadapter_engine.evaluation.subjects import Subject

MEASURES = ("identity", "prompt", "clip_i", "clip_t", "dino", "diversity")
SHARES = ("identity", "prompt")  # of the attributes that were read
TIMES = ("setup_s", "image_s")


@dataclass(frozen=True)
class Measures:
    """What pictures are measured by; None leaves that column empty. The judge knows mascots only.

    clip_t_weight: CLIP-T is the cosine, or with a weight CLIPScore, weight * max(cosine, 0).
    """

    clip: Likeness | None
    dino: Likeness | None = None
    judge: Judge | None = None
    clip_t_weight: float | None = None


@dataclass
class Tally:
    """What was measured of one method.

    sums: by measure and subject, (sum, count). times: by kind, a list a subject, as times of one subject's pictures go
    together; those of image_s are of `timed` pictures.
    """

    sums: dict[str, dict[str, tuple[float, int]]] = field(default_factory=dict)
    times: dict[str, list[list[float]]] = field(default_factory=dict)
    subject_bytes: list[int] = field(default_factory=list)
    shared_bytes: int = 0
    pictures: int = 0

    def add(self, measure: str, subject: Subject, values: np.ndarray) -> None:
        if values.size:
            self.sums.setdefault(measure, {})[subject.name] = (float(values.sum()), int(values.size))

    def add_time(self, kind: str, seconds: list[float]) -> None:
        self.times.setdefault(kind, []).append(seconds)

    def as_json(self, name: str, title: str, text: Tally | None = None) -> dict[str, Any]:
        """A row of the table; text: text only, against which the same subjects and shots are compared in pairs."""
        told: dict[str, Any] = {"method": name, "title": title, "pictures": self.pictures}
        figures: dict[str, Figure | None] = dict.fromkeys((*MEASURES, *TIMES))
        for measure, by_subject in self.sums.items():
            table = np.array(list(by_subject.values()))
            figures[measure] = mean_of(table[:, 0], table[:, 1], share=measure in SHARES)
        figures |= {k: median_of(groups) for k, groups in self.times.items() if any(groups)}
        told["figures"] = {k: None if f is None else f.as_json() for k, f in figures.items()}
        told["against_text"] = None if text is None else self._less(text)
        timed = sum(map(len, self.times.get("image_s", [])))
        told["notes"] = [] if timed == self.pictures or "image_s" not in self.times else [
            f"s/image is of {timed} of {self.pictures} pictures; the others were made on another machine or in other batches"
        ]  # fmt: skip
        told["subject_bytes"] = round(float(np.mean(self.subject_bytes))) if self.subject_bytes else None
        told["shared_bytes"] = self.shared_bytes
        return told

    def _less(self, text: Tally) -> dict[str, Any]:
        """By measure, the mean over pictures of this method's value less that of text only, shot by shot."""
        told = {}
        for measure in MEASURES:
            mine, theirs = self.sums.get(measure, {}), text.sums.get(measure, {})
            both = [(mine[s], theirs[s]) for s in mine if s in theirs and mine[s][1] == theirs[s][1]]
            if both:
                sums, counts = np.array([[a - b, n] for (a, n), (b, _) in both]).T
                told[measure] = mean_of(sums, counts).as_json()
        return told


@dataclass(frozen=True, eq=False)
class References:
    """A subject's references as each measure sees them, (references, dim)."""

    clip: np.ndarray | None
    dino: np.ndarray | None

    @classmethod
    def of(cls, pictures: Sequence[Image.Image], measures: Measures) -> References:
        clip, dino = (m.pictures(pictures) if m is not None else None for m in (measures.clip, measures.dino))
        return cls(clip, dino)


def measure(
    tally: Tally, pictures: Sequence[Image.Image], subject: Subject, against: References, measures: Measures
) -> None:
    """Add what one method's pictures of one subject are worth; a picture counts once in every measure."""
    tally.pictures += len(pictures)
    if measures.clip is not None and against.clip is not None:
        seen = measures.clip.pictures(pictures)
        tally.add("clip_i", subject, (seen @ against.clip.T).mean(1))
        tally.add("diversity", subject, diversity(seen, [s.group for s in subject.shots]))
        if measures.clip.reads_texts:
            captions = [s.said(subject.words) if s.caption is None else s.caption for s in subject.shots]
            weight, cosines = measures.clip_t_weight, np.einsum("nd,nd->n", seen, measures.clip.texts(captions))
            tally.add("clip_t", subject, cosines if weight is None else weight * np.maximum(cosines, 0))
    if measures.dino is not None and against.dino is not None:
        tally.add("dino", subject, (measures.dino.pictures(pictures) @ against.dino.T).mean(1))
    asked = [s.staged for s in subject.shots if s.staged is not None]
    if measures.judge is not None and asked:
        right = attributes_right(measures.judge, np.stack([np.asarray(p) for p in pictures]), truths(asked))
        tally.add("identity", subject, right[:, columns(IDENTITY)].mean(1))
        tally.add("prompt", subject, right[:, columns(PROMPT)].mean(1))


def measure_themselves(
    tally: Tally,
    references: Sequence[Image.Image],
    subject: Subject,
    against: References,
    measures: Measures,
    size_px: int,
) -> None:
    """The ceiling: the renderer's drawings of the same shots, or each reference against the subject's other ones.

    A subject with one reference says nothing of the latter and is not counted.
    """
    asked = [s.staged for s in subject.shots if s.staged is not None]
    if measures.judge is not None and asked:
        pictures = drawn(asked, size_px)
        measure(tally, [Image.fromarray(p) for p in pictures], subject, against, measures)
        return
    if len(references) < 2:
        return
    tally.pictures += len(references)
    for name, seen in (("clip_i", against.clip), ("dino", against.dino)):
        if seen is not None:
            alike = seen @ seen.T
            tally.add(name, subject, (alike.sum(1) - alike.diagonal()) / (len(seen) - 1))
