"""Server-sent events of a run, gone on with after a break."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from uuid import UUID

import httpx
from pydantic import ValidationError

from studio.client.errors import TooMany, Unavailable, Unclear, WaitedTooLong
from studio.client.models import Event, Run
from studio.client.routes import EVENTS
from studio.client.sending import Sender

SILENT_S = 45.0  # the server says every 15 s that it is there


def follow(sender: Sender, run_id: UUID, timeout_s: float | None) -> Iterator[Event]:
    """Each change of the run, until its end. WaitedTooLong; what the server refuses; Unreachable."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    seen, tried = "", 0
    while True:
        try:
            headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": seen} if seen else {})
            with sender.stream(EVENTS, headers, _left(deadline, SILENT_S), run_id=run_id) as answer:
                for event in events_of(_lines(answer, deadline)):
                    seen, tried = event.id, 0
                    yield event
                    if event.name == "end":
                        return
            pause_s: float | None = sender.pause_s(
                httpx.ReadError("it ended"), 1
            )  # the server ends a stream after an hour
        except (Unavailable, TooMany, httpx.TransportError) as error:
            _left(deadline, SILENT_S)
            tried += 1
            pause_s = None if tried >= sender.patience.tries else sender.pause_s(error, tried)
            if pause_s is None:
                raise sender.told(error) from error
        assert pause_s is not None
        sender.sleep(min(pause_s, _left(deadline, pause_s)))


def _left(deadline: float | None, most_s: float) -> float:
    """The seconds that are left, at most so many. WaitedTooLong where there are none."""
    if deadline is None:
        return most_s
    left = deadline - time.monotonic()
    if left <= 0:
        raise WaitedTooLong("the run goes on", "Wait longer, or look at it later: nothing of it is lost.")
    return min(most_s, left)


def _lines(answer: httpx.Response, deadline: float | None) -> Iterator[str]:
    """Lines of the stream. They end at LF alone: httpx would end them at U+2028 too, which may stand in what people write."""
    rest = b""
    for part in answer.iter_bytes():
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r").decode("utf-8", "replace")
        _left(deadline, SILENT_S)


def events_of(lines: Iterator[str]) -> Iterator[Event]:
    """What these lines tell; a comment keeps the connection alone. Unclear where it is no run."""
    told: dict[str, str] = {}
    for line in lines:
        if line.startswith(":"):
            continue
        if line:
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            told[name] = f"{told['data']}\n{value}" if name == "data" and "data" in told else value
        elif "data" in told:
            run: Run | None = None
            with suppress(ValidationError):
                run = Run.model_validate_json(told["data"])
            if run is None:
                raise Unclear("an event is not of a run", "Look whether client and server are of versions that fit.")
            yield Event(id=told.get("id", ""), name=told.get("event", "message"), run=run)
            told = {}
        else:
            told = {}
