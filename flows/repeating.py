"""Work beside the pages that never ends: a thread that looks for something to do, and looks again."""

from __future__ import annotations

import logging
import threading

log = logging.getLogger("onmodel.repeating")
IDLE_S, ENDS_WITHIN_S = 1.0, 30.0


class Repeating(threading.Thread):
    """Takes steps until it is stopped, and waits where a step had nothing to do or failed: the database may be away."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._ending = threading.Event()

    def step(self) -> bool:
        """Do one thing; whether there was anything to do."""
        raise NotImplementedError

    def run(self) -> None:
        while not self._ending.is_set():
            busy = False
            try:
                busy = self.step()
            except Exception:  # what was not done is done later
                log.exception("the %s failed", self.name)
            if not busy:
                self._ending.wait(IDLE_S)

    def stop(self) -> None:
        """End after the step under way."""
        self._ending.set()
        self.join(ENDS_WITHIN_S)
