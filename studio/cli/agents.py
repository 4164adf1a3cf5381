"""`onmodel mcp`: the door for AI agents."""

from __future__ import annotations

from typing import Annotated

import typer

from studio.cli.app import app
from studio.cli.console import err, plain, speaking


@app.command()
def mcp(
    http: Annotated[bool, typer.Option("--http/--stdio", help="By HTTP, or on standard input and output.")] = False,
    host: Annotated[str, typer.Option(help="Where to listen; other than loopback put TLS in front.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8401,
    name: Annotated[
        list[str] | None,
        typer.Option(help="What callers call the server, besides its address, such as studio.example."),
    ] = None,
) -> None:
    """Serve tools for AI agents (Model Context Protocol), which work through the API with an agent's own key."""
    with speaking():
        from asset_store.errors import SettingsInvalid

        try:
            import mcp as _sdk  # noqa: F401
        except ImportError:
            raise SettingsInvalid(
                "the door for agents needs the package mcp", "Install it: pip install 'onmodel[agents]'."
            ) from None
        from studio.agents.callers import DoorSettings
        from studio.agents.doors import LOOPBACK_NAMES, PATH, is_loopback, serve_http, serve_stdio

        settings = DoorSettings()
        if not http:
            serve_stdio(settings)
            return
        everywhere = host in ("0.0.0.0", "::")  # noqa: S104  (it is asked for)
        own = LOOPBACK_NAMES if is_loopback(host) else () if everywhere else (host,)
        names = [*own, *(name or ())]
        if not names:
            raise SettingsInvalid(
                "who listens at every address says by which name they are called",
                "Give --name, such as studio.example.",
            )
        from studio.api.serving import listening

        with listening(host, port) as server:
            err.print(
                f"Tools for agents are at http://{plain(host)}:{server.getsockname()[1]}{PATH}, by {plain(settings.address)}"
            )
            err.print("[dim]Ctrl-C ends it.[/]")
            serve_http(settings, server, names)
