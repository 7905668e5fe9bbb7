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
