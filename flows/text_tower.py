"""The door to the text half of the image encoder's own CLIP: it says how well a picture fits a prompt."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from flows.configured import configured
from flows.settings import Settings
from flows.wiring import engine

if TYPE_CHECKING:
    from ipadapter_engine.evaluation.likeness import Likeness


def text_tower(settings: Settings) -> Likeness | None:
    """The measure that reads texts beside pictures, of the engine that the settings name; open once a process.

    None where no text encoder shares the image encoder's space; see `likeness.of_engine` for where one is looked for.
    """
    return _tower(configured(settings).model_dump_json(include={"engine", "home"}))


@functools.lru_cache(maxsize=1)
def _tower(settings_json: str) -> Likeness | None:
    from ipadapter_engine.checkpoints import EMBEDDED, CheckpointPaths
    from ipadapter_engine.evaluation.likeness import of_engine

    settings = Settings.model_validate_json(settings_json)
    base = settings.engine.base or EMBEDDED
    folder = CheckpointPaths(base, encoder=settings.engine.encoder).resolved().encoder
    if folder is None:
        return None
    measure = of_engine(engine(settings), folder)
    return measure if measure.reads_texts else None
