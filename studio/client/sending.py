"""Requests, tried again where that does nothing twice, and their refusals as errors."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from studio.client.errors import ClientError, QuotaSpent, TooMany, Unavailable, Unclear, Unreachable, refusal_of
from studio.client.models import Problem
from studio.client.routes import Route

Out = TypeVar("Out", bound=BaseModel)
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 30.0


@dataclass(frozen=True, slots=True)
class Patience:
    """tries: how often a request is sent in all. A server that wants a longer pause than longest_pause_s is not waited for."""

    tries: int = 5
    longest_pause_s: float = LONGEST_PAUSE_S


class Sender:
    """One server and one key. Safe to use in several threads."""

    def __init__(
        self, address: str, key: str, timeout_s: float, patience: Patience, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        if not address.startswith(("http://", "https://")):
            raise ClientError(f"{address[:200]!r} is no address of a server", "Give one such as http://127.0.0.1:8400.")
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            raise ClientError("a key is missing, or is none", "`onmodel keys make` makes one.")
        self.address, self.patience, self.sleep = address.rstrip("/"), patience, sleep
        self._http = httpx.Client(
            base_url=self.address, timeout=timeout_s, headers={"Authorization": f"Bearer {key}", "Accept": "application/json"}
        )  # fmt: skip

    def close(self) -> None:
        self._http.close()

    def read(self, route: Route, kind: type[Out], *, key: str | None = None, **request: Any) -> Out:
        """What a route answers, as `kind`."""
        answer = self.send(route, key=key, **request)
        try:
            return kind.model_validate_json(answer.content)
        except ValidationError as error:
            raise Unclear(
                f"{self.address} answers {route.path} in another way than it is read here: {_first(error)}",
                "Look whether the address is Onmodel's, and whether client and server are of versions that fit.",
            ) from None

    def send(
        self, route: Route, *, key: str | None = None, query: Mapping[str, Any] | None = None, body: Any = None,
        files: Mapping[str, bytes] | None = None, headers: Mapping[str, str] | None = None, **names: Any,
    ) -> httpx.Response:  # fmt: skip
        """The answer to one request. names: what stands in the path; key: an Idempotency-Key, made here where it is needed."""
        sent = dict(headers or {})
        if route.makes:
            sent["Idempotency-Key"] = key or str(uuid.uuid4())  # the same in every try
        request = self._http.build_request(
            route.method, path_of(route, **names), params=_given(query), json=body, files=files, headers=sent
        )
        for tried in range(1, self.patience.tries + 1):
            try:
                answer = self._http.send(request)
                self.check(answer)
                return answer
            except (Unavailable, TooMany, httpx.TransportError) as error:
                last = tried == self.patience.tries or not route.again
                pause_s = self.pause_s(error, tried)
                if last or pause_s is None:
                    raise self.told(error) from error
                self.sleep(pause_s)
        raise AssertionError("a request is tried at least once")

    @contextmanager
    def stream(self, route: Route, headers: Mapping[str, str], read_s: float, **names: Any) -> Iterator[httpx.Response]:
        """An answer that is read as it comes. No line within read_s is a httpx.ReadTimeout."""
        usual = self._http.timeout
        timeout = httpx.Timeout(connect=usual.connect, read=read_s, write=usual.write, pool=usual.pool)
        with self._http.stream(route.method, path_of(route, **names), headers=dict(headers), timeout=timeout) as answer:
            if answer.status_code != httpx.codes.OK:
                answer.read()
            self.check(answer)
            yield answer

    def check(self, answer: httpx.Response) -> None:
        """Raise what the server refused with."""
        if answer.is_success:
            return
        try:
            problem = Problem.model_validate_json(answer.content)
        except ValidationError:
            problem = Problem()
        if not answer.is_error or (not problem.status and answer.status_code not in (429, 502, 503, 504)):
            raise Unclear(
                f"{self.address} answers {answer.status_code}, and not as Onmodel does",
                "Look whether the address is Onmodel's.",
            )
        if not problem.status:  # of a proxy before it
            status = 503 if answer.status_code >= 500 else answer.status_code
            problem = Problem(title=f"{self.address} answers {answer.status_code}", status=status)
        raise refusal_of(problem, _seconds(answer.headers.get("Retry-After")))

    def pause_s(self, error: ClientError | httpx.TransportError, tried: int) -> float | None:
        """How long to wait before the next try; None where that would come to nothing."""
        if isinstance(error, QuotaSpent | httpx.UnsupportedProtocol | httpx.LocalProtocolError):
            return None
        if isinstance(error, TooMany) and error.retry_after_s:
            return error.retry_after_s if error.retry_after_s <= self.patience.longest_pause_s else None
        pause_s: float = min(self.patience.longest_pause_s, FIRST_PAUSE_S * 2 ** (tried - 1))
        return pause_s * random.uniform(0.5, 1.0)

    def told(self, error: ClientError | httpx.TransportError) -> ClientError:
        if isinstance(error, ClientError):
            return error
        why = str(error) or type(error).__name__
        return Unreachable(f"{self.address} does not answer: {why}", "Look whether `onmodel up` runs there.")


def path_of(route: Route, **names: Any) -> str:
    """The path with these names in it, each of them one part of it."""
    return route.path.format(**{name: quote(str(value), safe="") for name, value in names.items()})


def _given(query: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (query or {}).items() if value is not None}


def _seconds(header: str | None) -> float:
    return float(header) if header is not None and header.isascii() and header.isdigit() else 0.0


def _first(error: ValidationError) -> str:
    told = error.errors(include_input=False, include_url=False)[0]
    return f"{'.'.join(map(str, told['loc']))}: {told['msg']}"
