"""The daemon as a process: real sockets, real signals, a fake worker and a two-path API."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fakes
import pytest
from running_daemon import ARGV, RunningDaemon, make_state, settings_json
from waiting import DEADLINE_S, has_ended, until

from edge_agent.store.store import Store

ALIVE = ("idle", "ready")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return make_state(tmp_path)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    """Shared by the tests that leave it running, because a start costs a second of imports."""
    state = make_state(tmp_path_factory.mktemp("shared"))
    running = RunningDaemon(state, crash_budget=1000).ready()
    yield running
    assert running.stop() == 0


def refused(argument: str, environ: dict[str, str] | None = None) -> tuple[int, str]:
    """Exit code and stderr of a daemon that must not start."""
    ended = subprocess.run(
        [*ARGV, argument],
        capture_output=True,
        text=True,
        env={**os.environ, **(environ or {})},
        check=False,
    )
    assert "Traceback" not in ended.stderr and ended.stdout == ""
    assert ended.stderr.startswith("error: "), ended.stderr
    return ended.returncode, ended.stderr


# ---- serving -----------------------------------------------------------------------------------


def test_run_json_names_the_daemon_and_follows_the_worker(daemon: RunningDaemon) -> None:
    run = daemon.run_json()
    assert run is not None and set(run) == {
        "pid", "worker_pid", "socket", "port", "version", "started_at",
    }  # fmt: skip
    assert run["socket"] == str(daemon.state / "agent.sock")
    assert daemon.generate(chunks=1) == ["1 ", ""]
    first = daemon.worker_pid()
    os.kill(first, signal.SIGKILL)
    until(lambda: daemon.worker_pid() != first)
    assert daemon.generate(chunks=1) == ["1 ", ""]


def test_tcp_is_loopback_only_and_serves_the_same(daemon: RunningDaemon) -> None:
    run = daemon.run_json()
    assert run is not None
    with contextlib.closing(
        http.client.HTTPConnection("127.0.0.1", run["port"], DEADLINE_S)
    ) as tcp:
        tcp.request("GET", "/status")
        assert json.loads(tcp.getresponse().read())["state"] in ALIVE
    ours = {
        os.readlink(link)
        for link in Path(f"/proc/{daemon.process.pid}/fd").iterdir()
        if link.is_symlink()
    }
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    mine = [row for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in ours]
    assert [row[1].split(":")[0] for row in mine] == ["0100007F"]
    rows = [line.split() for line in Path("/proc/net/tcp6").read_text().splitlines()[1:]]
    assert not [row for row in rows if f"socket:[{row[9]}]" in ours]


def test_files_are_private(daemon: RunningDaemon) -> None:
    modes = {path.name: path.stat().st_mode & 0o777 for path in daemon.state.iterdir()}
    assert modes["agent.sock"] == modes["token"] == modes["edge-agent.db"] == 0o600
    assert daemon.get("/status")["token"] == (daemon.state / "token").read_text().strip()


def test_a_worker_killed_mid_stream_leaves_daemon_and_connection_well(
    daemon: RunningDaemon,
) -> None:
    assert daemon.generate(then="die:SIGSEGV") == ["1 ", "2 ", {"error": "worker_failed"}]
    assert daemon.generate(chunks=1) == ["1 ", ""]
    assert daemon.process.poll() is None


def test_a_client_that_leaves_cancels_its_generation(daemon: RunningDaemon) -> None:
    connection, response = daemon.start(chunks=1000, every_s=0.02)
    response.readline()
    response.close()
    connection.close()
    log = Path(f"{daemon.state}/tiny.gguf.log")
    until(lambda: '"cancel"' in log.read_text())
    assert daemon.process.poll() is None


def test_the_front_is_small_and_holds_no_native_model_code(daemon: RunningDaemon) -> None:
    daemon.generate(chunks=3)
    process = Path(f"/proc/{daemon.process.pid}")
    lines = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    assert int(lines["RssAnon"].split()[0]) <= 70 * 1024
    maps = (process / "maps").read_text()
    assert not [name for name in ("llama", "ggml", "numpy") if name in maps]
    assert "Max core file size        0" in (process / "limits").read_text()


# ---- stopping ----------------------------------------------------------------------------------


def test_sigterm_lets_a_running_request_end(state: Path) -> None:
    daemon = RunningDaemon(state, drain_s=3600).ready()
    connection, response = daemon.start(chunks=10, held=True)
    assert response.readline() == b'"1 "\n'
    worker = daemon.worker_pid()
    daemon.process.terminate()
    until(lambda: "stopping" in daemon.log())
    fakes.release(str(state / "tiny.gguf"))
    rest = response.read().splitlines()
    connection.close()
    assert [json.loads(line) for line in rest[-2:]] == ["10 ", ""]
    assert daemon.stop() == 0
    assert has_ended(worker)
    left = {path.name for path in state.iterdir()}
    assert "run.json" not in left and "agent.sock" not in left
    assert "edge-agent.db-wal" not in left, "the database was closed"


def test_a_second_signal_ends_the_drain(state: Path) -> None:
    daemon = RunningDaemon(state, drain_s=3600).ready()
    connection, response = daemon.start(held=True, obeys_cancel=False)
    assert response.readline() == b'"1 "\n'
    daemon.process.send_signal(signal.SIGINT)
    until(lambda: "stopping" in daemon.log())
    daemon.process.send_signal(signal.SIGINT)
    assert json.loads(response.read().splitlines()[-1]) == {"error": "shutting_down"}
    connection.close()
    assert daemon.stop() == 0


def test_the_drain_is_bounded(state: Path) -> None:
    daemon = RunningDaemon(state, drain_s=0.3).ready()
    connection, response = daemon.start(held=True)
    response.readline()
    daemon.process.terminate()
    assert json.loads(response.read().splitlines()[-1]) == {"error": "shutting_down"}
    connection.close()
    assert daemon.stop() == 0


def test_a_killed_daemon_leaves_no_worker_and_can_be_started_again(state: Path) -> None:
    daemon = RunningDaemon(state).ready()
    daemon.generate(chunks=1)
    worker = daemon.worker_pid()
    daemon.process.kill()
    daemon.stop()
    until(lambda: has_ended(worker))
    assert (state / "agent.sock").exists(), "a stale socket is what the next one finds"
    again = RunningDaemon(state).ready()
    assert again.generate(chunks=1) == ["1 ", ""]
    assert again.stop() == 0


def test_sighup_is_ignored(daemon: RunningDaemon) -> None:
    daemon.process.send_signal(signal.SIGHUP)
    assert daemon.get("/status")["state"] in ALIVE


# ---- refusing to start -------------------------------------------------------------------------


def test_a_second_daemon_on_the_same_state_is_refused(daemon: RunningDaemon) -> None:
    code, text = refused(settings_json(daemon.state))
    assert code == 1 and str(daemon.process.pid) in text and "hint:" in text
    assert daemon.get("/status")["state"] in ALIVE, "the first one was not disturbed"


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, text = refused(settings_json(tmp_path / "s", port=port))
    assert code == 2 and f"127.0.0.1:{port}" in text and "--port" in text


def test_a_socket_somebody_answers_on_is_not_taken(daemon: RunningDaemon, tmp_path: Path) -> None:
    path = daemon.state / "agent.sock"
    code, text = refused(settings_json(tmp_path / "other", socket=path))
    assert code == 2 and "another process answers" in text
    assert daemon.get("/status")["state"] in ALIVE


def test_a_file_in_place_of_the_socket_is_kept(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("data")
    code, text = refused(settings_json(tmp_path / "s", socket=precious))
    assert code == 2 and "no socket" in text and precious.read_text() == "data"


def test_bad_settings_are_a_usage_error() -> None:
    assert refused('{"host": "0.0.0.0"}')[0] == 2


def test_paths_that_cannot_be_are_usage_errors(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert refused(settings_json(tmp_path / "file"))[0] == 2
    assert refused(settings_json(tmp_path / "s", socket=tmp_path / ("x" * 120)))[0] == 2


def test_an_unknown_model_is_refused_before_anything_listens(state: Path) -> None:
    code, text = refused(settings_json(state, model="typo"))
    assert code == 1 and "tiny" in text and not (state / "agent.sock").exists()


# ---- systemd -----------------------------------------------------------------------------------


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.settimeout(DEADLINE_S)
        yield receiver


def test_systemd_hears_loading_ready_watchdog_and_stopping(
    state: Path, systemd: socket.socket
) -> None:
    with Store(state / "edge-agent.db") as store:
        slow = fakes.register(state, "slow", held=True)
        store.add_model(slow)
    environ = {"NOTIFY_SOCKET": systemd.getsockname(), "WATCHDOG_USEC": "200000"}
    daemon = RunningDaemon(state, environ, model="slow")
    heard = [systemd.recv(999).decode()]
    while "STATUS=loading slow" not in heard:
        heard.append(systemd.recv(999).decode())
    fakes.release(slow.path)
    while not any("READY=1" in message for message in heard):
        heard.append(systemd.recv(999).decode())
    assert any("EXTEND_TIMEOUT_USEC" in message for message in heard)
    assert "STATUS=ready slow" in heard[-1]
    worker = Path(f"/proc/{daemon.worker_pid()}/environ").read_bytes()
    assert b"NOTIFY_SOCKET" not in worker and b"WATCHDOG" not in worker
    heard.clear()
    while heard.count("WATCHDOG=1") < 3:
        heard.append(systemd.recv(999).decode())
    daemon.process.terminate()
    while "STOPPING=1" not in heard[-1]:
        heard.append(systemd.recv(999).decode())
    assert daemon.stop() == 0


def test_a_model_that_cannot_be_loaded_is_logged_and_the_daemon_stays(
    state: Path, systemd: socket.socket
) -> None:
    with Store(state / "edge-agent.db") as store:
        store.add_model(fakes.register(state, "big", then="refuse"))
    daemon = RunningDaemon(state, {"NOTIFY_SOCKET": systemd.getsockname()}, model="big").ready()
    assert "it does not fit: 2 > 1" in daemon.log() and "hint: buy memory" in daemon.log()
    assert daemon.get("/status")["state"] == "idle"
    assert daemon.stop() == 0


def test_a_signal_during_the_first_load_stops_the_daemon(state: Path) -> None:
    with Store(state / "edge-agent.db") as store:
        store.add_model(fakes.register(state, "mute", then="mute"))
    daemon = RunningDaemon(state, model="mute", drain_s=0)
    worker = daemon.worker_pid()
    assert daemon.stop() == 0
    assert has_ended(worker)


LAUNCHER = """
import fcntl, os, sys
n = int(sys.argv[1])
high = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 100) for fd in sys.argv[2 : 2 + n]]
for place, fd in enumerate(high, start=3):
    os.dup2(fd, place)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(n))
os.execv(sys.argv[2 + n], sys.argv[2 + n :])
"""


def launch(
    state: Path, sockets: list[socket.socket], stderr: Any = None
) -> subprocess.Popen[bytes]:
    """As systemd does: the sockets are descriptors 3, 4 ... and LISTEN_PID is the daemon's."""
    numbers = [str(sock.fileno()) for sock in sockets]
    return subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(len(numbers)), *numbers, *ARGV, settings_json(state)],
        pass_fds=[sock.fileno() for sock in sockets],
        stderr=stderr,
    )


def test_sockets_passed_by_systemd_are_served_and_left_alone(state: Path, tmp_path: Path) -> None:
    path = tmp_path / "passed.sock"
    with socket.socket(socket.AF_UNIX) as unix, socket.create_server(("127.0.0.1", 0)) as tcp:
        unix.bind(str(path))
        unix.listen()
        process = launch(state, [unix, tcp])
        try:
            connection = http.client.HTTPConnection("localhost", timeout=DEADLINE_S)
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.settimeout(DEADLINE_S)
            connection.sock.connect(str(path))
            connection.request("GET", "/status")
            assert json.loads(connection.getresponse().read())["state"] == "idle"
            connection.close()
            run = json.loads((state / "run.json").read_text())
            assert (run["socket"], run["port"]) == (str(path), tcp.getsockname()[1])
            assert not (state / "agent.sock").exists()
        finally:
            process.terminate()
            assert process.wait(DEADLINE_S) == 0
    assert path.exists(), "it belongs to systemd"


def test_a_passed_socket_off_loopback_is_refused(state: Path, tmp_path: Path) -> None:
    with (
        socket.create_server(("0.0.0.0", 0)) as everywhere,
        (tmp_path / "stderr").open("w+") as stderr,
    ):
        assert launch(state, [everywhere], stderr).wait(DEADLINE_S) == 2
        stderr.seek(0)
        assert "0.0.0.0" in stderr.read()
