"""`onmodel up` as a process of its own, as a person starts it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def served(home: Path) -> Iterator[tuple[str, str]]:
    """The address of the pages over the data in `home`, and the link that it printed; without a worker and Prefect."""
    command = [
        sys.executable,
        "-c",
        "from studio.cli.app import run; run()",
        "up",
        "--port",
        "0",
        "--no-worker",
        "--no-prefect",
    ]
    environment = {**os.environ, "ONMODEL_HOME": str(home), "COLUMNS": "400", "NO_COLOR": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    try:
        assert process.stdout is not None
        printed = ""
        while "sign-in#" not in printed and (line := process.stdout.readline()):
            printed += line
        found = re.search(r"(http://[\d.:]+)/sign-in#\S+", printed)
        if found is None:
            raise SystemExit(f"onmodel up printed no link: {printed}")
        yield found[1], found[0]
    finally:
        process.terminate()
        process.wait(timeout=30)
