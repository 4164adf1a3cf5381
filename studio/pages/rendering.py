"""Templates to answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from asset_store.people.permissions import Principal
from studio.api.callers import COOKIE, csrf_of

HERE = Path(__file__).resolve().parent
_templates = Environment(
    loader=FileSystemLoader(HERE / "templates"), autoescape=select_autoescape(default=True), undefined=StrictUndefined,
    trim_blocks=True, lstrip_blocks=True,
)  # fmt: skip


def page(request: Request, name: str, who: Principal | None, **values: Any) -> Response:
    """The template as the person who is signed in, if any, sees it; of a problem with its status."""
    cookie = request.cookies.get(COOKIE, "")
    csrf = csrf_of(cookie) if who is not None and cookie else ""
    html = _templates.get_template(name).render(who=who, csrf=csrf, path=request.url.path, **values)
    return HTMLResponse(html, values["problem"]["status"] if "problem" in values else 200)
