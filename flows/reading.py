"""What words and pictures are to the encoder that the references were embedded with: for searching, without what makes pictures."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from PIL import Image

from asset_store.errors import SearchBusy, SearchUnavailable
from flows.configured import configured
from flows.settings import EngineSettings, Settings
from ipadapter_engine.errors import CheckpointRefused

if TYPE_CHECKING:
    import numpy as np

    from ipadapter_engine.evaluation.likeness import Likeness

AT_ONCE, WAITS_S = 2, 10.0  # forward passes take all cores that there are
_lock, _turns = threading.Lock(), threading.BoundedSemaphore(AT_ONCE)


def read_text(settings: Settings, text: str) -> tuple[str, np.ndarray]:
    """The encoder's sha256, and float32 (dim,) of length one. SearchUnavailable where it reads no texts; SearchBusy."""
    reader = _reader(settings)
    if not reader.reads_texts:
        raise SearchUnavailable(
            f"{reader.name} reads no texts", "Search by a picture, or set ONMODEL_ENGINE__ENCODER to a whole CLIP."
        )
    with _turn():
        return reader.models[0].sha256, reader.texts([text])[0]


def read_picture(settings: Settings, picture: Image.Image) -> tuple[str, np.ndarray]:
    """The same of an RGB picture of any size."""
    reader = _reader(settings)
    with _turn():
        return reader.models[0].sha256, reader.pictures([picture])[0]


@contextmanager
def _turn() -> Iterator[None]:
    if not _turns.acquire(timeout=WAITS_S):
        raise SearchBusy(int(WAITS_S))
    try:
        yield
    finally:
        _turns.release()


def _reader(settings: Settings) -> Likeness:
    """Opened once a process, when it is first asked."""
    with _lock:
        try:
            return _open(configured(settings).engine.model_dump_json())
        except CheckpointRefused as error:
            raise SearchUnavailable(
                "what reads pictures and texts does not open", "`onmodel doctor` says what to do."
            ) from error


@functools.lru_cache(maxsize=1)
def _open(settings_json: str) -> Likeness:
    from ipadapter_engine.checkpoints import EMBEDDED, CheckpointPaths
    from ipadapter_engine.evaluation.likeness import of_checkpoint

    settings = EngineSettings.model_validate_json(settings_json)
    try:
        return of_checkpoint(
            CheckpointPaths(settings.base or EMBEDDED, encoder=settings.encoder, tokenizer=settings.tokenizer)
        )
    except CheckpointRefused as error:
        raise SearchUnavailable(
            "what reads pictures and texts does not open", "`onmodel doctor` says what to do."
        ) from error
