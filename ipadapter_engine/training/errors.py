"""What can go wrong in training, as one branch of the engine's tree:

EngineError
└── TrainingError
    ├── TrainingRefused     settings, data and checkpoint do not go together; nothing was trained
    │   └── FolderInvalid   problems: a folder of pictures and captions with mistakes, all of them
    ├── BaseChanged         the frozen base is not what it was before; nothing was saved
    └── TrainingFailed      the loss is no number any more, or what was saved does not load back
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ipadapter_engine.errors import EngineError


class TrainingError(EngineError):
    pass


class TrainingRefused(TrainingError):
    pass


class BaseChanged(TrainingError):
    pass


class TrainingFailed(TrainingError):
    pass


@dataclass(frozen=True)
class FolderProblem:
    """One thing wrong with a training folder: `line` is 1-based in a metadata.jsonl, 1 where the file is meant."""

    file: str
    message: str
    line: int = 1

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}"


class FolderInvalid(TrainingRefused):
    """A folder of pictures and captions that cannot be trained on as it is; `problems` has all that is wrong."""

    def __init__(self, problems: Sequence[FolderProblem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)), "correct the files named; docs/training.md has an example")
