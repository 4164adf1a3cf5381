"""The web application: `/v1`, its errors, its headers and its limits."""

from __future__ import annotations

import base64
import hashlib
import uuid
from collections import Counter
from importlib.metadata import PackageNotFoundError, version

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flows.wiring import Store
from studio.api import (
    assets,
    campaigns,
    discussing,
    finding,
    people,
    pictures,
    problems,
    references,
    releases,
    retakes,
    rights,
    runs,
    schedules,
    shares,
    subscriptions,
)
from studio.api.company import Provider
from studio.api.limits import Limiter, Rate
from studio.pages import routes as pages


def _by_hash(style: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()}'"


CALLS, SIGN_INS = Rate(burst=200, per_s=50.0), Rate(burst=10, per_s=0.1)
LARGEST_BODY = 1_000_000
# The one style that OpenSeadragon puts into a page by itself: allowed to the letter, and no other.
OPENSEADRAGON_STYLE = "@media (hover: none) {    .openseadragon-canvas:focus {        outline: none !important;    }}"
HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; script-src 'self'; style-src 'self' {_by_hash(OPENSEADRAGON_STYLE)}; img-src 'self' blob:; connect-src 'self'; "
        "font-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
_HEADERS = [(k.lower().encode(), v.encode()) for k, v in {**HEADERS, "Cache-Control": "no-store"}.items()]
TITLE = "Onmodel"
ABOUT = """Approved references in, approved pictures out, and where each of them came from.

Programs send `Authorization: Bearer KEY` (`onmodel keys make`). Changes of an asset send its ETag in `If-Match`; whatever makes
or decides takes an `Idempotency-Key`. Errors are `application/problem+json`: `type` names the error, `next_step` says what to do.
"""


def create_app(store: Store, *, calls: Rate = CALLS, sign_ins: Rate = SIGN_INS) -> FastAPI:
    """The application on an open store, which whoever opened it closes."""
    app = FastAPI(
        title=TITLE,
        description=ABOUT,
        version=_version(),
        openapi_url="/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
    )
    app.state.store = store
    app.state.following = Counter()  # open streams of events, by who follows
    app.state.callers, app.state.sign_ins = Limiter(calls), Limiter(sign_ins)
    app.state.provider = Provider(store.settings.oidc) if store.settings.oidc.issuer else None
    problems.install(app)
    app.add_middleware(Guard)
    pages.install(app)  # first: addresses are tried in this order, and a reviewer's hand waits for pages
    refusals = {s: {"content": {problems.MEDIA_TYPE: {}}, "description": told} for s, told in REFUSALS.items()}
    for part in (
        assets,
        finding,
        pictures,
        references,
        releases,
        discussing,
        retakes,
        rights,
        shares,
        people,
        subscriptions,
        campaigns,
        runs,
        schedules,
    ):
        app.include_router(part.router, prefix="/v1", responses=refusals)  # type: ignore[arg-type]
    return app


REFUSALS = {
    401: "Nobody is signed in.",
    403: "They may not do this.",
    404: "There is no such thing, or they may not see it.",
    409: "It is not in a state for this.",
    412: "It was changed since it was seen.",
    422: "The request cannot be so.",
    428: "If-Match is missing.",
    429: "Too many requests.",
    503: "A part that is needed cannot be reached now.",
}


class Guard:
    """Headers of every answer; bodies that are too large are not read; what fails is told by a number that is in the log."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = False

        async def send_guarded(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                given = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(h for h in _HEADERS if h[0] not in given)]
            await send(message)

        if not _is_small(scope):
            told = f"a request is {LARGEST_BODY} bytes at most, and says its length"
            await problems.answer(problems.problem(413, told))(scope, receive, send_guarded)
            return
        try:
            await self.app(scope, receive, send_guarded)
        except Exception:
            number = uuid.uuid4().hex[:12]
            problems.log.exception("request %s failed: %s %s", number, scope["method"], scope["path"])
            if begun:  # it cannot be told any more: the connection ends
                raise
            told = f"something went wrong here; in the log it is {number}"
            await problems.answer(problems.problem(500, told, kind="Unexpected"))(scope, receive, send_guarded)


def _is_small(scope: Scope) -> bool:
    headers = Headers(scope=scope)
    length = headers.get("content-length", "0")
    chunked = "chunked" in headers.get("transfer-encoding", "")
    return length.isdigit() and int(length) <= LARGEST_BODY and not chunked


def _version() -> str:
    try:
        return version("onmodel")
    except PackageNotFoundError:
        return "0"
