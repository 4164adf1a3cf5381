"""`onmodel up`: everything on this machine, with one command."""

from __future__ import annotations

from contextlib import ExitStack
from types import FrameType
from typing import Annotated, NoReturn

import typer

from studio.cli.app import app
from studio.cli.console import err, out, plain, speaking

KEPT_OPEN_S = (
    75  # idle connections: longer than clients and proxies keep them, who would send into one that is just closed
)


@app.command()
def up(
    host: Annotated[str, typer.Option(help="Where to listen; other than loopback put TLS in front.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8400,
    make: Annotated[bool, typer.Option("--worker/--no-worker", help="Make queued pictures here, too.")] = True,
    prefect: Annotated[
        bool, typer.Option("--prefect/--no-prefect", help="Start Prefect's server and flows, too.")
    ] = True,
) -> None:
    """Start the database, Prefect, a worker, the API and the pages, and print the address and a link that signs you in."""
    with speaking():
        import gc
        import os
        import signal

        import uvicorn

        from flows.settings import load_settings, prefect_api
        from flows.starter import Starter
        from flows.telling import Teller
        from flows.wiring import open_store, os_user
        from studio.api.app import create_app
        from studio.api.serving import first_person, link_for, listening, prefect_server, worker

        signal.signal(signal.SIGTERM, _ended)
        settings = load_settings()
        if (
            prefect and prefect_api() is None and settings.prefect.ui_url is None
        ):  # the server that is started here has no UI
            settings = settings.model_copy(update={"prefect": settings.prefect.model_copy(update={"ui_url": ""})})
        with ExitStack() as running:
            server = running.enter_context(listening(host, port))
            address = f"http://{host}:{server.getsockname()[1]}"
            store = running.enter_context(open_store(settings))
            with store.database.transaction() as session:
                person = first_person(session, os_user())
                link = None if person is None else link_for(session, person.handle, address)
            if prefect and prefect_api() is None:
                err.print("[dim]Starting Prefect's server …[/]")
                os.environ["PREFECT_API_URL"] = running.enter_context(prefect_server(settings.home))
            if make:
                running.enter_context(worker(settings.home))
            teller = Teller(store)
            running.callback(teller.stop)
            teller.start()
            starter = Starter(store)
            running.callback(starter.stop)
            starter.start()
            out.print(f"[bold]Onmodel[/] is at {plain(address)}, its data on {plain(store.database.describe())}")
            if link is None:
                out.print(
                    f"{plain(os_user())} has no account here: `onmodel people link NAME` makes a link for who has one."
                )
            else:
                out.print(f"Sign in, once, within 15 minutes: {plain(link)}")
            err.print("[dim]Ctrl-C ends it; nothing is lost.[/]")
            config = uvicorn.Config(
                create_app(store), log_level="warning", server_header=False, timeout_graceful_shutdown=5,
                timeout_keep_alive=KEPT_OPEN_S,
            )  # fmt: skip
            gc.collect()
            gc.freeze()  # what is loaded by now stays: looking through it again held answers up
            uvicorn.Server(config).run(sockets=[server])


def _ended(signal_number: int, frame: FrameType | None) -> NoReturn:
    """As by Ctrl-C: what was started beside is ended, too."""
    raise KeyboardInterrupt
