"""Messages as systemd's end of the socket receives them."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import DEADLINE_S

from edge_agent.daemon.sd_notify import Notifier


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.settimeout(DEADLINE_S)
        yield receiver


def test_every_message_has_its_documented_form(systemd: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": systemd.getsockname()})
    notifier.extend_timeout(30)
    notifier.status("loading\na model")
    notifier.ready("ready tiny")
    notifier.watchdog()
    notifier.stopping("draining")
    assert [systemd.recv(999).decode() for _ in range(5)] == [
        "EXTEND_TIMEOUT_USEC=30000000",
        "STATUS=loading a model",
        "READY=1\nSTATUS=ready tiny",
        "WATCHDOG=1",
        "STOPPING=1\nSTATUS=draining",
    ]


def test_a_status_cannot_smuggle_another_field(systemd: socket.socket) -> None:
    Notifier({"NOTIFY_SOCKET": systemd.getsockname()}).status("x\nMAINPID=1")
    assert systemd.recv(999) == b"STATUS=x MAINPID=1"


def test_an_abstract_socket_is_understood() -> None:
    name = f"edge-agent-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind("\0" + name)
        receiver.settimeout(DEADLINE_S)
        Notifier({"NOTIFY_SOCKET": "@" + name}).watchdog()
        assert receiver.recv(999) == b"WATCHDOG=1"


@pytest.mark.parametrize("address", [None, "", "relative", "/nonexistent/socket", "/" + "x" * 200])
def test_without_a_usable_socket_nothing_happens(address: str | None) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": address} if address is not None else {})
    notifier.ready("x")
    notifier.stopping("x")  # the test is that neither raises


def test_a_full_socket_does_not_block(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        notifier = Notifier({"NOTIFY_SOCKET": receiver.getsockname()})
        for _ in range(5000):
            notifier.watchdog()
        assert receiver.recv(999) == b"WATCHDOG=1"


@pytest.mark.parametrize(
    ("variables", "period_s"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_period_is_half_of_what_systemd_allows(
    variables: dict[str, str], period_s: float | None
) -> None:
    assert Notifier({"NOTIFY_SOCKET": "/x", **variables}).watchdog_period_s == period_s
