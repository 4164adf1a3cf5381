"""A wire that breaks: connections to a server that end before or within an answer."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from studio.api.serving import LOOPBACK, listening


@dataclass
class Wire:
    """lost: so many of the next connections end when the server has answered, before the answer comes through."""

    address: str = ""
    lost: int = 0
    connections: int = 0
    open_: list[socket.socket] = field(default_factory=list)

    def cut(self) -> None:
        """End what is open now."""
        for end in self.open_:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self.open_.clear()


@contextmanager
def breaking(address: str) -> Iterator[Wire]:
    """A wire to the server at this address."""
    to = (urlsplit(address).hostname, urlsplit(address).port)
    wire = Wire()
    with listening(LOOPBACK, 0) as door:
        wire.address = f"http://{LOOPBACK}:{door.getsockname()[1]}"

        def carry(near: socket.socket) -> None:
            far = socket.create_connection(to)
            loses, wire.lost = wire.lost > 0, max(0, wire.lost - 1)
            wire.open_ += [near, far]
            back = threading.Thread(target=pump, args=(far, near, loses), daemon=True)
            back.start()
            pump(near, far)

        def pump(source: socket.socket, target: socket.socket, loses: bool = False) -> None:
            with suppress(OSError):
                while data := source.recv(65536):
                    if loses:
                        break
                    target.sendall(data)
            for end in (source, target):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

        def accept() -> None:
            with suppress(OSError):
                while True:
                    near, _ = door.accept()
                    wire.connections += 1
                    threading.Thread(target=carry, args=(near,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield wire
        finally:
            wire.cut()
