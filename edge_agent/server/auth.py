"""Who may send requests: holders of the bearer token on TCP, trusted users on the Unix socket.

Flows in: the request line, the headers and the accepted socket. Flows out: nothing, or a typed
refusal, before any byte of the body is read. On TCP the attacker is a web page in a browser on this
machine: Host and Origin are compared with exact lists (against DNS rebinding and cross-site posts),
and no CORS header is ever sent. The dashboard's cookie counts as the token for requests of our own
page. On the Unix socket the kernel states the peer's user (SO_PEERCRED). Not here: file modes of
the token (state_dir.py) and of the socket (daemon/listeners.py).
"""

from __future__ import annotations

import grp
import hmac
import os
import pwd
import socket
import struct

from aiohttp import web
from aiohttp.http import HttpVersion10, HttpVersion11
from aiohttp.web_request import BaseRequest

from edge_agent.server.error_body import Refusal
from edge_agent.server.session import Sessions, cookie_name

GROUP = "edge-agent"
"""Members of this group may use the service's socket. The group need not exist."""

DASHBOARD_FILES = (
    *("enter", "session", "style.css", "icon.svg"),
    *("api.js", "app.js", "chart.js", "enter.js", "feedback.js", "learning.js"),
)
PUBLIC_PATHS = frozenset(
    {"/", "/health", "/v1/health", *(f"/dashboard/{name}" for name in DASHBOARD_FILES)}
)
"""Paths that need no token: liveness, as with llama-server and Ollama, and the dashboard's files,
which hold no data."""

LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")
"""The only values of Host, with or without the port, under which a genuine client can reach the
daemon: it listens on loopback only."""

CALLER = web.RequestKey("caller", str)
"""The sender as `check_peer` names it; set when a request has passed the checks (app.py)."""
TOKEN_HOLDER = "http"
SESSION_HOLDER = "dashboard"
ANYONE = ""
"""Who asks for a public path and showed nothing."""

_PEERCRED = struct.Struct("3i")


def check_framing(request: BaseRequest, max_bytes: int, max_fields: int) -> None:
    """Refuse too long headers (431), unknown HTTP versions and targets that are no path (400).

    Raises Refusal.
    """
    fields = request.raw_headers
    size = len(request.raw_path) + sum(len(name) + len(value) + 4 for name, value in fields)
    if size > max_bytes or len(fields) > max_fields:
        raise Refusal(
            431,
            "headers_too_large",
            f"{len(fields)} header fields of {size} bytes together",
            f"at most {max_fields} fields and {max_bytes} bytes are read",
        )
    if request.version not in (HttpVersion10, HttpVersion11):
        raise Refusal(400, "invalid_version", "this is not HTTP/1.0 or HTTP/1.1")
    if not request.raw_path.startswith("/"):
        raise Refusal(
            400,
            "invalid_target",
            f"request target {request.raw_path[:80]!r} is not a path",
            "this is no proxy",
            "send the path alone, as in 'GET /v1/models HTTP/1.1'",
        )


def check_peer(request: BaseRequest, token: str, sessions: Sessions) -> str:
    """The sender: "uid:N" (Unix socket), "dashboard" (cookie), "http" (token) or ANYONE.

    Raises Refusal with 400, 401, 403 or 421 for whoever may not use the daemon.
    """
    transport = request.transport
    peer = transport.get_extra_info("socket") if transport else None
    if peer is None:
        raise Refusal(400, "connection_lost", "the connection is gone")
    if peer.family == socket.AF_UNIX:
        return f"uid:{_check_credentials(peer)}"
    port = peer.getsockname()[1]
    _check_host(request, port)
    if _has_session(request, port, sessions):
        return SESSION_HOLDER
    if request.path in PUBLIC_PATHS:
        return ANYONE
    _check_token(request, token)
    return TOKEN_HOLDER


def showed_secret(request: BaseRequest) -> bool:
    """Whether the sender proved itself by something that a browser does not add by itself: the
    token, or the user id at the Unix socket. A cookie is added by itself."""
    return request.get(CALLER, ANYONE) not in (ANYONE, SESSION_HOLDER)


def is_operator(name: str) -> bool:
    """Whether this sender could read the database anyway; `name` is a result of `check_peer`."""
    return name in (TOKEN_HOLDER, "uid:0", f"uid:{os.geteuid()}")


def _check_host(request: BaseRequest, port: int) -> None:
    hosts = request.headers.getall("Host", [])
    here = [f"{name}:{port}" for name in LOOPBACK_NAMES]
    if len(hosts) != 1 or hosts[0].lower() not in (*LOOPBACK_NAMES, *here):
        raise Refusal(
            421,
            "wrong_host",
            f"Host {', '.join(hosts)[:80]!r} is not this daemon",
            "only loopback names are served: a web page could point its own name here",
            f"use one of {', '.join(here)}; through ssh -L keep the port number",
        )
    origins = request.headers.getall("Origin", [])
    if any(origin.lower() not in {f"http://{host}" for host in here} for origin in origins):
        raise Refusal(
            403,
            "wrong_origin",
            f"Origin {', '.join(origins)[:80]!r} is not allowed",
            "web pages of other origins may not use this daemon",
            "call it from a program, not from a page",
        )


def _has_session(request: BaseRequest, port: int, sessions: Sessions) -> bool:
    """Whether a request carries a valid cookie and comes from the dashboard's own origin.

    SameSite=Strict keeps the cookie out of other sites' requests. Other ports of this host are the
    same site; the browser's Sec-Fetch-Site header (Fetch Metadata, W3C) tells them apart.
    """
    cookie = request.cookies.get(cookie_name(port), "")
    if not cookie or request.headers.get("Sec-Fetch-Site", "same-origin") != "same-origin":
        return False
    return sessions.is_valid(cookie)


def _check_token(request: BaseRequest, token: str) -> None:
    header = request.headers.get("Authorization", "")
    scheme, _, given = header.partition(" ")
    genuine = hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), token.encode())
    if scheme.lower() != "bearer" or not genuine or not token:
        raise Refusal(
            401,
            "invalid_api_key",
            "the bearer token is wrong" if header else "no bearer token",
            "TCP clients must send it",
            "send 'Authorization: Bearer TOKEN' with the text of STATE/token",
        ).with_headers({"WWW-Authenticate": "Bearer"})


def _credentials(peer: socket.socket) -> tuple[int, int]:
    """(uid, gid) of the peer: SO_PEERCRED returns the kernel's struct ucred {pid, uid, gid}."""
    raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)
    _, uid, gid = _PEERCRED.unpack(raw)
    return uid, gid


def _check_credentials(peer: socket.socket) -> int:
    """The user id of a trusted peer."""
    uid, gid = _credentials(peer)
    if not is_trusted(uid, gid, own_uid=os.geteuid()):
        raise Refusal(
            403,
            "peer_refused",
            f"user id {uid} may not use this socket",
            f"it is not root, not this daemon's user and not in group {GROUP}",
            f"sudo usermod -aG {GROUP} NAME, then log in again",
        )
    return uid


def is_trusted(uid: int, gid: int, *, own_uid: int, group: str = GROUP) -> bool:
    """Whether this is root, the daemon's own user, or a member of `group` in any way."""
    if uid in (0, own_uid):
        return True
    group_id = _group_id(group)
    if group_id is None:
        return False
    return gid == group_id or group_id in _groups_of(uid, gid)


def _group_id(group: str) -> int | None:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        return None


def _groups_of(uid: int, gid: int) -> list[int]:
    try:
        return os.getgrouplist(pwd.getpwuid(uid).pw_name, gid)
    except KeyError:
        return []
