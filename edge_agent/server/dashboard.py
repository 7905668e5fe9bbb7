"""The dashboard: a page on the loopback port for chatting and for watching the board.

Flows in: requests of browsers. Flows out: the static files of page/, sent from memory under a
strict content security policy; one-time links for callers with a token or the right user id; the
cookie that such a link sets. The page is an ordinary client of the API. GET / answers Ollama's
banner to every client that is no browser. Not here: sessions (session.py), which requests a cookie
lets in (auth.py).
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from aiohttp import web
from pydantic import BaseModel, Field

from edge_agent.server.body import read_request
from edge_agent.server.error_body import Refusal
from edge_agent.server.ollama import GREETING
from edge_agent.server.reply import json_response
from edge_agent.server.route import Route
from edge_agent.server.sampling_fields import Body
from edge_agent.server.service import SERVICE
from edge_agent.server.session import SESSION_S, Sessions, cookie_name
from edge_agent.server.status import addresses

PAGE = Path(__file__).with_name("page")
TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
    "Vary": "Accept, Cookie",
}
SCRIPTS = ("api.js", "app.js", "chart.js", "enter.js", "feedback.js", "learning.js")
FILES = ("style.css", "icon.svg", *SCRIPTS)
SESSIONS = web.AppKey("sessions", Sessions)


class EnterRequest(Body):
    """POST /dashboard/session"""

    code: str = Field(min_length=1, max_length=200)


class DashboardLink(BaseModel):
    """`url` works once, within five minutes."""

    url: str


@cache
def _file(name: str) -> tuple[bytes, str]:
    """Content and ETag. Cached, because the files change only with the package, after a restart."""
    data = (PAGE / name).read_bytes()
    return data, f'"{hashlib.sha256(data).hexdigest()[:20]}"'


def page_response(request: web.Request, name: str, status: int = 200) -> web.Response:
    """A file of page/ with the security headers, or 304 when the browser has it."""
    data, etag = _file(name)
    headers = {**HEADERS, "ETag": etag}
    if status == 200 and request.headers.get("If-None-Match") == etag:
        return web.Response(status=304, headers=headers)
    return web.Response(
        body=data,
        status=status,
        headers=headers,
        content_type=TYPES[Path(name).suffix],
        charset="utf-8",
    )


async def root(request: web.Request) -> web.Response:
    """The page for a browser with a session, instructions for one without, Ollama's banner
    otherwise."""
    if "text/html" not in request.headers.get("Accept", ""):
        return web.Response(text=GREETING)
    is_known = request.app[SESSIONS].is_valid(_cookie(request))
    return (
        page_response(request, "index.html")
        if is_known
        else page_response(request, "locked.html", 401)
    )


async def static(request: web.Request) -> web.Response:
    """One of FILES."""
    return page_response(request, request.path.rpartition("/")[2])


async def enter_page(request: web.Request) -> web.Response:
    """The page that a one-time link leads to.

    The code is in the link's fragment, which browsers never send to a server; enter.js posts it.
    """
    return page_response(request, "enter.html")


async def link(request: web.Request) -> web.Response:
    """A new one-time link. The caller has already shown a token or the right user id. Raises
    Refusal."""
    service = request.app[SERVICE]
    port = addresses(service)["port"]
    if port is None:
        raise Refusal(
            409,
            "no_port",
            "there is no dashboard",
            "this daemon listens on no TCP port",
            "start it with --port 0 or another number",
        )
    code = request.app[SESSIONS].code()
    return json_response({"url": f"http://127.0.0.1:{port}/dashboard/enter#{code}"})


async def session(request: web.Request) -> web.Response:
    """Exchange a link's code for a cookie. Raises Refusal when the code is used up or expired."""
    service = request.app[SERVICE]
    body = await read_request(request, EnterRequest, service.limits, service.n_ctx())
    cookie = request.app[SESSIONS].enter(body.code)
    if cookie is None:
        hint = "`edge-agent dashboard` prints a new one"
        why = "a link works once, for five minutes"
        raise Refusal(403, "link_used", "this link is not valid any more", why, hint)
    response = web.Response(status=204)
    response.set_cookie(
        cookie_name(_port(request)),
        cookie,
        max_age=int(SESSION_S),
        httponly=True,
        samesite="Strict",
        path="/",
    )
    return response


def _cookie(request: web.Request) -> str:
    return request.cookies.get(cookie_name(_port(request)), "")


def _port(request: web.Request) -> int:
    """The port of this connection; 0 on the Unix socket, where no cookie is needed."""
    transport = request.transport
    name = transport.get_extra_info("sockname") if transport else None
    return name[1] if isinstance(name, tuple) else 0


ROUTES = (
    Route("GET", "/", root, "The dashboard for browsers; liveness, as Ollama words it"),
    Route("GET", "/dashboard/enter", enter_page, "Where a one-time link leads"),
    Route("POST", "/dashboard/link", link, "A one-time link to the dashboard", DashboardLink),
    Route("POST", "/dashboard/session", session, "A link's code for a cookie", body=EnterRequest),
    *(Route("GET", f"/dashboard/{name}", static, f"The dashboard's {name}") for name in FILES),
)
