"""What can go wrong in the engine, as one tree:

EngineError
├── CheckpointRefused   a model file is missing, damaged, of another kind, or does not fit the others
├── RequestRefused      a request asks for what the loaded family cannot do
└── GenerationFailed    the model ran and made no usable picture (NaN, out of memory)

Every error is one sentence and a next step.
"""

from __future__ import annotations


class EngineError(Exception):
    """`message`: one sentence that says what is wrong; `next_step`: what to do about it."""

    def __init__(self, message: str, next_step: str) -> None:
        super().__init__(message)
        self.message, self.next_step = message, next_step


class CheckpointRefused(EngineError):
    pass


class RequestRefused(EngineError):
    pass


class GenerationFailed(EngineError):
    pass
