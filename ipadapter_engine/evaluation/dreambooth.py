"""A LoRA of every subject of an evaluation, trained once: what is there already is taken."""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from ipadapter_engine.checkpoints import Checkpoint, CheckpointPaths, open_checkpoint
from ipadapter_engine.evaluation.methods import TrainedSubject, pixels_sha256
from ipadapter_engine.evaluation.subjects import SUBJECT, Subject
from ipadapter_engine.hashing import sha256_of_file
from ipadapter_engine.pipeline import Engine
from ipadapter_engine.prompts import CharacterModel
from ipadapter_engine.training.captions import prompt_for
from ipadapter_engine.training.character import FEWEST, MOST, CharacterTraining, class_latents, train_character
from ipadapter_engine.training.frozen import base_sha256s
from ipadapter_engine.training.mascots import random_staging

CLASS_PROMPTS = 24  # stagings that the studio model's class pictures show


class SubjectTraining:
    """Trains on a checkpoint of its own, from the engine's `paths`, so that the engine's stays as it is; opened when
    first needed.

    A subject's seconds are the whole training, from references to file. Class pictures are made before, once for all
    subjects of a class, and are not in them.
    """

    def __init__(
        self,
        engine: Engine,
        paths: CheckpointPaths,
        folder: Path,
        settings: CharacterTraining,
        on_step: Callable[[int, int], None] | None = None,
    ) -> None:
        self.engine, self.paths, self.folder, self.settings, self.on_step = engine, paths, folder, settings, on_step
        self._opened: Checkpoint | None = None

    def __call__(self, subject: Subject, references: Sequence[Image.Image]) -> TrainedSubject:
        """Raises TrainingRefused for fewer than 3 references; of more than 8, the first 8 are learnt."""
        learnt = list(references[:MOST])
        settings = self._settings(subject)
        captions = subject.captions
        told = None if captions is None else [c.replace(SUBJECT, settings.phrase) for c in captions[: len(learnt)]]
        out = self.folder / _fingerprint(self.engine, settings, learnt, told)
        note = out / "trained.json"
        known = _read(note)
        if known is None:
            checkpoint = self._checkpoint()
            self._make_class_pictures(checkpoint, settings, out)
            began = time.perf_counter()
            made = train_character(checkpoint, learnt, out, settings, captions=told, on_step=self.on_step)
            # of a training that was killed and went on, at least what all its steps took
            seconds = max(time.perf_counter() - began, made.seconds)
            known = TrainedSubject(CharacterModel(made.file, made.sha256), made.phrase, made.size_bytes, seconds)
            _write(note, known)
        used = {k: v for k, v in settings.determining().items() if k not in ("subject", "phrase")}
        return replace(known, settings=used)

    def _settings(self, subject: Subject) -> CharacterTraining:
        """With the subject's class, where class pictures are kept, and the size that the training would choose."""
        settings = replace(
            self.settings,
            subject=subject.words,
            class_cache=self.folder / "class",
            size_px=self.settings.size_px or self.engine.family.size_px,
        )
        if self.engine.family.name != "studio" or settings.class_prompts:
            return settings
        rng = random.Random(settings.seed)
        return replace(settings, class_prompts=tuple(prompt_for(random_staging(rng)) for _ in range(CLASS_PROMPTS)))

    def _make_class_pictures(self, checkpoint: Checkpoint, settings: CharacterTraining, out: Path) -> None:
        if settings.prior_weight:
            size_px = settings.size_px or checkpoint.family.size_px
            class_latents(checkpoint, settings, size_px, base_sha256s(checkpoint), out)  # kept where training looks

    def _checkpoint(self) -> Checkpoint:
        """What trains: the base alone."""
        if self._opened is None:
            unet = self.engine.checkpoint.unet
            opened = open_checkpoint(self.paths, device=str(unet.device), dtype=unet.dtype)
            self._opened = replace(opened, adapter=None, encoder=None, further={}, controls={})
        return self._opened


def can_train(references: int) -> bool:
    return references >= FEWEST


def _fingerprint(
    engine: Engine, settings: CharacterTraining, pictures: Sequence[Image.Image], captions: Sequence[str] | None
) -> str:
    unet = engine.checkpoint.unet
    told = {
        "models": sorted([m.role, m.sha256] for m in engine.models if m.role not in ("ip-adapter", "image encoder")),
        "where": [unet.device.type, str(unet.dtype)],
        "settings": settings.determining(),
        "pictures": [pixels_sha256(p) for p in pictures],
        "captions": captions,
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _read(note: Path) -> TrainedSubject | None:
    """What was trained before, if its file is still the one that was written."""
    try:
        told = json.loads(note.read_text(encoding="utf-8"))
        file = note.parent / told["file"]
        if sha256_of_file(file) != told["sha256"]:
            return None
        return TrainedSubject(
            CharacterModel(file, told["sha256"]), told["words"], int(told["size_bytes"]), float(told["seconds"])
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(note: Path, trained: TrainedSubject) -> None:
    told = {"file": trained.model.file.name, "sha256": trained.model.sha256, "words": trained.words,
            "size_bytes": trained.size_bytes, "seconds": trained.seconds}  # fmt: skip
    partial = note.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(told), encoding="utf-8")
    os.replace(partial, note)
