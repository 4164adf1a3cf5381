"""How the command line speaks: tables and bars for people, JSON for machines, one sentence for an error.

Exit codes: 0 done; 1 refused or failed; 2 wrong usage or an invalid file; 3 done, with problems listed;
4 something that is needed cannot be reached; 130 interrupted.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sqlalchemy.exc import OperationalError

from asset_store.errors import (
    BlobStoreUnreachable,
    DatabaseUnreachable,
    FileInvalid,
    OnmodelError,
    SettingsInvalid,
    SourceUnreachable,
    VectorMissing,
)
from asset_store.library.keys import safe_key
from flows.progress import listening

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


class Exit(IntEnum):
    DONE = 0
    FAILED = 1
    INVALID = 2
    PROBLEMS = 3
    UNREACHABLE = 4
    INTERRUPTED = 130


class Options:
    """What was given before the command: `--debug`."""

    debug = False


@contextmanager
def speaking() -> Iterator[None]:
    """Turn what a use case raises into one sentence, a next step and an exit code; a traceback only with --debug."""
    try:
        yield
    except (typer.Exit, typer.Abort, SystemExit):
        raise
    except KeyboardInterrupt:
        err.print("[yellow]Interrupted.[/] Nothing is lost: the same command goes on where this one stopped.")
        _end(Exit.INTERRUPTED)
    except Exception as error:
        if Options.debug:
            traceback.print_exc()
        message, next_step, code = _told(error)
        err.print(f"[bold red]Error:[/] {_escaped(message)}")
        if next_step:
            err.print(f"[dim]→[/] {_escaped(next_step)}")
        _end(code)


def _end(code: Exit) -> None:
    raise typer.Exit(int(code))


def _told(error: Exception) -> tuple[str, str, Exit]:
    """Message, next step and exit code of an error, ours or not."""
    if isinstance(error, FileInvalid):
        return error.message, error.next_step, Exit.INVALID
    if isinstance(error, OperationalError):
        why = (str(error.orig or error).strip().splitlines() or [""])[0]
        return (
            f"the database went away: {why}",
            "Run the command again; `onmodel doctor` says what is wrong.",
            Exit.UNREACHABLE,
        )
    if isinstance(error, SettingsInvalid):
        return error.message, error.next_step, Exit.INVALID
    if isinstance(error, BlobStoreUnreachable | DatabaseUnreachable | SourceUnreachable | VectorMissing):
        return error.message, error.next_step, Exit.UNREACHABLE
    if isinstance(error, OnmodelError):
        return error.message, error.next_step, Exit.FAILED
    message, next_step = getattr(error, "message", None), getattr(error, "next_step", None)
    if isinstance(message, str) and isinstance(next_step, str):  # the engine's errors, without importing torch
        return message, next_step, Exit.FAILED
    first = (str(error).strip().splitlines() or [""])[0]
    return (
        f"{type(error).__name__}: {first}",
        "Run the command again with --debug before it for the traceback, as in `onmodel --debug doctor`.",
        Exit.FAILED,
    )


def _escaped(text: str) -> str:
    return "\n".join(safe_key(line) for line in text.splitlines()).replace("[", r"\[")


def emit(value: Any) -> None:
    """One JSON document on standard output, for `--json`."""
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")


def table(title: str, *columns: str) -> Table:
    made = Table(
        title=title or None, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim"
    )
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def plain(text: object) -> str:
    """Text from elsewhere, safe to show: no markup, no control or bidi characters."""
    return _escaped(str(text))


@contextmanager
def bars(*, quiet: bool) -> Iterator[None]:
    """Progress bars on standard error for what the flows report."""
    if quiet or not err.is_terminal:
        yield
        return
    columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        tasks: dict[str, Any] = {}

        def hear(what: str, done: int, of: int) -> None:
            if not of:
                return
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=of)
            progress.update(tasks[what], completed=done, total=of)

        with listening(hear):
            yield
