"""Who may ask: Host, Origin and token on TCP, credentials on the Unix socket."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from http_front import TOKEN, Front, serving

from edge_agent.server.auth import is_trusted


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    with serving(tmp_path_factory.mktemp("auth")) as front:
        yield front


def test_token_is_needed_but_for_liveness(front: Front) -> None:
    for path in ("/", "/health", "/v1/health"):
        assert front.get(path, token=None).status == 200
    for path in ("/v1/models", "/status", "/openapi.json", "/slots", "/props", "/nope"):
        answer = front.get(path, token=None)
        assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert front.post("/tokenize", {"content": "x"}, token=None).status == 401


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x", f"Basic {TOKEN}", TOKEN]
    + [f"Bearer {TOKEN.upper()}", "Bearer \xff\xfe"],
)
def test_wrong_token_is_401(front: Front, header: str) -> None:
    answer = front.get("/v1/models", token=None, headers={"Authorization": header})
    assert answer.status == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "LOCALHOST", "[::1]"])
def test_loopback_hosts_pass_with_and_without_the_port(front: Front, name: str) -> None:
    for host in (name, f"{name}:{front.port}"):
        assert front.get("/health", headers={"Host": host}).status == 200


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1.evil", "evil", "localhost:1", "localhost:80@x", "127.0.0.1:", "", "0.0.0.0"]
    + ["127.1", "localhost.", "[::]", "127.0.0.1:99999", "user@localhost", "localhost, evil"],
)
def test_any_other_host_is_421(front: Front, host: str) -> None:
    assert front.get("/health", headers={"Host": host}).status == 421


@pytest.mark.parametrize(
    "origin",
    ["null", "http://evil", "https://localhost", "http://localhost", "http://127.0.0.1:1", ""]
    + ["http://localhost.evil", "file://"],
)
def test_foreign_origin_is_403_even_with_the_token(front: Front, origin: str) -> None:
    answer = front.get("/v1/models", headers={"Origin": origin})
    assert (answer.status, answer.json()["error"]["code"]) == (403, "wrong_origin")


def test_own_origin_passes_and_no_cors_header_is_sent(front: Front) -> None:
    answer = front.get("/v1/models", headers={"Origin": f"http://localhost:{front.port}"})
    assert answer.status == 200
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]


def test_unix_socket_needs_no_token(front: Front) -> None:
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(front.socket_path))
        peer.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert peer.recv(100).startswith(b"HTTP/1.1 200 ")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_stranger_on_the_unix_socket_is_403(tmp_path: Path) -> None:
    knock = """
import os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
peer = socket.socket(socket.AF_UNIX); peer.connect(sys.argv[1])
peer.sendall(b"GET /v1/models HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n")
print(peer.recv(12).decode())
"""
    state = Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())
    state.chmod(0o755)
    with serving(state) as front:
        front.socket_path.chmod(0o666)
        argv = [sys.executable, "-c", knock, str(front.socket_path)]
        assert subprocess.check_output(argv, text=True).strip() == "HTTP/1.1 403"


def test_trusted_are_root_the_own_user_and_the_group() -> None:
    assert is_trusted(0, 0, own_uid=999)
    assert is_trusted(999, 1, own_uid=999)
    assert is_trusted(12345, 0, own_uid=999, group="root")
    assert not is_trusted(12345, 12345, own_uid=999, group="root")
    assert not is_trusted(12345, 12345, own_uid=999, group="no-such-group")


# ---- media types ---------------------------------------------------------------------------------

JSON_TYPES = [
    "application/json",
    "Application/JSON; charset=UTF-8",
    'application/json; charset="utf-8"',
]
JSON_TYPES += ["text/json", "application/vnd.api+json", "application/json; charset=us-ascii"]
BARE_TYPES = [None, "text/plain", "text/plain;charset=UTF-8", "application/x-www-form-urlencoded"]
BARE_TYPES += ["application/octet-stream", "json"]
OTHER_TYPES = ["application/xml", "multipart/form-data; boundary=b", "application/jsonx"]
OTHER_TYPES += ["application/json; charset=latin-1", "text/plain; charset=utf-16"]


def tokenize(path: str | int, lines: str, media: str | None) -> str:
    """The status of a POST /tokenize over the socket at `path`, or over TCP to a port."""
    body = b'{"content": "x"}'
    kind = "" if media is None else f"Content-Type: {media}\r\n"
    head = f"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{lines}{kind}"
    with socket.socket(socket.AF_UNIX if isinstance(path, str) else socket.AF_INET) as peer:
        peer.connect(path if isinstance(path, str) else ("127.0.0.1", path))
        peer.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        return peer.recv(100).decode()[9:12]


def session(front: Front) -> str:
    code = front.post("/dashboard/link", {}).json()["url"].partition("#")[2]
    entered = front.post("/dashboard/session", {"code": code}, token=None)
    return entered.headers["Set-Cookie"].partition(";")[0]


def test_a_token_or_the_socket_makes_json_of_what_names_no_type(front: Front) -> None:
    token = f"Authorization: Bearer {TOKEN}\r\n"
    for media in (*JSON_TYPES, *BARE_TYPES):
        assert tokenize(front.port, token, media) == "200", media
        assert tokenize(str(front.socket_path), "", media) == "200", media
    for media in OTHER_TYPES:
        assert tokenize(front.port, token, media) == "415", media
        assert tokenize(str(front.socket_path), "", media) == "415", media


@pytest.mark.parametrize("beside", ["", f"Authorization: Bearer {TOKEN}\r\n"])
def test_a_cookie_demands_a_type_that_no_page_of_another_site_may_send(
    front: Front, beside: str
) -> None:
    cookie = f"Cookie: {session(front)}\r\n{beside}"
    for media in JSON_TYPES:
        assert tokenize(front.port, cookie, media) == "200", media
    for media in (*BARE_TYPES, *OTHER_TYPES):
        assert tokenize(front.port, cookie, media) == "415", media


def test_a_public_path_reads_no_bare_type(front: Front) -> None:
    headers = {"Content-Type": "text/plain"}
    answer = front.post("/dashboard/session", {"code": "x"}, token=None, headers=headers)
    assert answer.status == 415
    hint = answer.json()["error"]["hint"]
    assert hint == "send the header 'Content-Type: application/json'"
