"""Templates to answers."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from starlette.staticfiles import StaticFiles

from asset_store.people.permissions import Principal
from studio.api.callers import COOKIE, csrf_of

HERE = Path(__file__).resolve().parent
_templates = Environment(
    loader=FileSystemLoader(HERE / "templates"), autoescape=select_autoescape(default=True), undefined=StrictUndefined,
    trim_blocks=True, lstrip_blocks=True,
)  # fmt: skip

_templates.filters["given"] = lambda values: {name: value for name, value in values.items() if value}


def _state_of(folder: Path) -> str:
    """Changes whenever a file does, so that browsers keep files for ever and never an old one."""
    found = hashlib.sha256()
    for file in sorted(f for f in folder.rglob("*") if f.is_file()):
        found.update(f"{file.relative_to(folder)}\0".encode() + file.read_bytes())
    return found.hexdigest()[:12]


STATIC = f"/static/{_state_of(HERE / 'static')}"


class StaticFilesForEver(StaticFiles):
    """Files at an address that names their content."""

    def file_response(self, *arguments: Any, **options: Any) -> Response:
        answer = super().file_response(*arguments, **options)
        answer.headers["Cache-Control"] = "public, max-age=31536000, immutable"
        return answer


def page(request: Request, name: str, who: Principal | None, **values: Any) -> Response:
    """The template as the person who is signed in, if any, sees it; of a problem with its status."""
    cookie = request.cookies.get(COOKIE, "")
    csrf = csrf_of(cookie) if who is not None and cookie else ""
    html = _templates.get_template(name).render(who=who, csrf=csrf, path=request.url.path, static=STATIC, **values)
    return HTMLResponse(html, values["problem"]["status"] if "problem" in values else 200)
