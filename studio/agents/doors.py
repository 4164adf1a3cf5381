"""The two ways to the server: a pipe, for an agent on the same machine, and HTTP, where each caller brings their own key."""

from __future__ import annotations

import ipaddress
import logging
import socket
from collections.abc import Sequence

import anyio
import uvicorn
from mcp.server.transport_security import TransportSecurityMiddleware, TransportSecuritySettings
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from studio.agents.callers import MAKE_ONE, DoorSettings, NotAnAgent, bearer, each_their_own, need_agent, one_for_all
from studio.agents.server import build
from studio.client import Client, ClientError, NotSignedIn, Patience, TooMany

PATH = "/mcp"
LARGEST_BODY = 2_000_000  # a picture of 1 MB as base64, and what stands around it
ASKED_AT_ONCE, IMPATIENT = 16, Patience(tries=2, longest_pause_s=1.0)
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")
log = logging.getLogger("onmodel.agents")


def serve_stdio(settings: DoorSettings) -> None:
    """Speak on standard input and output until the input ends. NotAnAgent, or what the API refuses, before anything is said."""
    if settings.key is None:
        raise ClientError("ONMODEL_KEY is not set", f"Set it to an agent's key. {MAKE_ONE}")
    with Client(settings.address, settings.key.get_secret_value()) as client:
        need_agent(client)
        build(one_for_all(client)).run("stdio")


def serve_http(settings: DoorSettings, listening: socket.socket, names: Sequence[str]) -> None:
    """Answer at /mcp on this socket until stopped. names: what callers may call the server in Host."""
    uvicorn.Server(uvicorn.Config(http_app(settings.address, names), log_level="warning", server_header=False)).run(
        [listening]
    )


def http_app(address: str, names: Sequence[str] = LOOPBACK_NAMES) -> ASGIApp:
    """The application: every request stands alone and is answered with the key that it brings. Nothing is kept between two."""
    security = guarded(names)
    app = build(each_their_own(address)).streamable_http_app(
        streamable_http_path=PATH, json_response=True, stateless_http=True, max_request_body_size=LARGEST_BODY,
        transport_security=security,
    )  # fmt: skip
    return OnlyAgents(app, address, security)


def guarded(names: Sequence[str]) -> TransportSecuritySettings:
    """Against pages that have a browser call here under another name (DNS rebinding)."""
    return TransportSecuritySettings(
        enable_dns_rebinding_protection=True,
        allowed_hosts=[form for name in names for form in (name, f"{name}:*")],
        allowed_origins=[f"{scheme}://{form}" for scheme in ("http", "https") for name in names for form in (name, f"{name}:*")],
    )  # fmt: skip


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class OnlyAgents:
    """Lets requests through that bring an agent's key: 401 without a key that is known, 403 with another's."""

    def __init__(self, app: ASGIApp, address: str, security: TransportSecuritySettings) -> None:
        self.app, self.address, self.hosts = app, address, TransportSecurityMiddleware(security)
        self.turns = anyio.CapacityLimiter(ASKED_AT_ONCE)  # of their own: tools that wait for a run keep nobody out

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            request = Request(scope)
            refused = await self.hosts.validate_request(request) or await self.asked(request)
            if refused is not None:
                await refused(scope, receive, send)
                return
        await self.app(scope, receive, send)

    async def asked(self, request: Request) -> Response | None:
        return await anyio.to_thread.run_sync(self.refusal, request, limiter=self.turns)

    def refusal(self, request: Request) -> Response | None:
        secret = bearer(request.headers.get("authorization", ""))
        if secret is None:
            how = {"WWW-Authenticate": "Bearer"}
            return _told(401, "this needs an agent's key", f"Send `Authorization: Bearer KEY`. {MAKE_ONE}", how)
        try:
            with Client(self.address, secret, timeout_s=10, patience=IMPATIENT) as client:
                need_agent(client)
        except NotSignedIn as error:
            return _told(401, str(error), MAKE_ONE, {"WWW-Authenticate": 'Bearer error="invalid_token"'})
        except TooMany as error:
            return _told(429, str(error), error.next_step, {"Retry-After": f"{error.retry_after_s:.0f}"})
        except NotAnAgent as error:
            return _told(403, str(error), error.next_step)
        except ClientError as error:
            log.warning("the API is not there for an agent: %s", error)
            return _told(503, str(error), error.next_step)
        return None


def _told(status: int, title: str, next_step: str, headers: dict[str, str] | None = None) -> Response:
    body = {"title": title, "status": status, "next_step": next_step}
    return JSONResponse(body, status, headers, "application/problem+json")
