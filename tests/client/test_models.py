"""list, show, pull, rm and completion: through a daemon, and without one under STATE/lock."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cli_runner import cli, filled
from fake_engine import FakeSupervisor, model_row
from http_front import serving

from edge_agent.client.local_state import LocalState
from edge_agent.client.models import DaemonModels, LocalModels, Models, open_models, run_pull
from edge_agent.errors import EdgeAgentError, RequestError
from edge_agent.server import app as server_app
from edge_agent.server import history
from edge_agent.server.history import TelemetryAnswer
from edge_agent.state_dir import StateDir
from edge_agent.store.rows import GenerationRow, SampleRow
from edge_agent.store.store import Store


def test_list_says_the_same_with_and_without_a_daemon(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with serving(tmp_path / "a", FakeSupervisor(known=("tiny", "twin"))):
        through_daemon = cli("list", "--json", state_dir=tmp_path / "a").document()
    (tmp_path / "b").mkdir()
    filled(tmp_path / "b")
    directly = cli("list", "--json", state_dir=tmp_path / "b").document()
    paths = [model.pop("path") for one in (directly, through_daemon) for model in one["models"]]
    assert len(paths) == 4 and directly == through_daemon
    assert directly["models"][0] == {
        "name": "tiny",
        "size_bytes": 1234,
        "sha256": "ab" * 32,
        "source": "embedded:tiny",
        "architecture": "llama",
        "description": "a fake",
        "n_params": 134_515_008,
        "n_ctx_train": 8192,
        "quantization": "Q4_1",
        "added_at": 1700000000.0,
        "adapter": None,
    }


def test_show_says_the_same_with_and_without_a_daemon(tmp_path: Path) -> None:
    with serving(tmp_path):
        through_daemon = cli("show", "tiny", "--json", state_dir=tmp_path).document()
    directly = cli("show", "tiny", "--json", state_dir=tmp_path).document()
    assert directly == through_daemon
    assert (directly["n_ctx_train"], directly["chat_template"]) == (8192, "{{ messages }}")


def test_tables_are_plain_in_a_pipe_and_drawn_on_a_terminal(tmp_path: Path) -> None:
    filled(tmp_path)
    plain = cli("list", state_dir=tmp_path).out.splitlines()
    titles = ["NAME", "SIZE", "PARAMETERS", "QUANTIZATION", "FAMILY", "SHA-256", "ADDED"]
    assert plain[0].split() == titles
    assert plain[1].startswith("tiny  1 kB  134.52M")
    assert "\x1b[" in cli("list", state_dir=tmp_path, on_screen=True).out
    assert "134.52M" in cli("show", "tiny", state_dir=tmp_path).out


def test_an_empty_list_says_what_to_pull(tmp_path: Path) -> None:
    done = cli("list", state_dir=tmp_path)
    assert (done.code, done.out) == (0, "")
    assert "edge-agent pull embedded:smollm2-135m" in done.err
    assert cli("list", "--json", state_dir=tmp_path).document() == {"models": []}


def test_rm_keeps_a_file_another_name_uses(tmp_path: Path) -> None:
    state = filled(tmp_path)
    assert cli("rm", "tiny", state_dir=tmp_path).out == "removed tiny\n"
    assert (state.models / "x.gguf").exists()
    assert cli("rm", "twin", "--json", state_dir=tmp_path).document() == {"removed": "twin"}
    assert not (state.models / "x.gguf").exists()
    assert cli("rm", "twin", state_dir=tmp_path).code == 1


def test_rm_never_deletes_outside_the_state_directory(tmp_path: Path) -> None:
    mine = tmp_path / "mine.gguf"
    mine.write_bytes(b"gguf")
    with Store(tmp_path / "edge-agent.db") as store:
        store.add_model(model_row("mine", str(mine)))
    assert cli("rm", "mine", state_dir=tmp_path).code == 0
    assert mine.exists()


def test_rm_goes_through_a_running_daemon(tmp_path: Path) -> None:
    with serving(tmp_path) as front:
        assert cli("rm", "other", state_dir=tmp_path).code == 0
        assert [row.name for row in front.store.models()] == ["tiny"]


def test_a_held_lock_without_a_daemon_is_reported(tmp_path: Path) -> None:
    held = StateDir(tmp_path)
    held.acquire()
    try:
        done = cli("list", "--json", state_dir=tmp_path)
    finally:
        held.release()
    assert done.code == 1
    assert done.document()["error"]["code"] == "daemon_running"


def test_pull_of_a_path_registers_it(tmp_path: Path, tiny_model: Path) -> None:
    done = cli("pull", str(tiny_model), "--name", "mine", "--json", state_dir=tmp_path / "s")
    assert (done.code, done.err) == (0, "")
    model = done.document()["model"]
    assert model["name"] == "mine"
    assert Path(model["path"]).read_bytes() == tiny_model.read_bytes()
    assert cli("list", "--json", state_dir=tmp_path / "s").document()["models"][0]["name"] == "mine"


def test_pull_through_a_daemon_names_what_it_registered(tmp_path: Path, tiny_model: Path) -> None:
    with serving(tmp_path):
        done = cli("pull", os.path.relpath(tiny_model), state_dir=tmp_path)
        names = [entry["name"] for entry in json_list(tmp_path)]
    assert done.code == 0, done.err
    assert done.out.startswith("tiny: ")
    assert "tiny" in names


def json_list(state_dir: Path) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = cli("list", "--json", state_dir=state_dir).document()["models"]
    return entries


def test_pull_of_what_is_no_model_registers_nothing(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"not a model")
    done = cli("pull", str(tmp_path / "x.gguf"), state_dir=tmp_path)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: ")
    assert json_list(tmp_path) == []


def test_a_pull_process_that_dies_is_a_download_error() -> None:
    command = [sys.executable, "-c", 'print(\'{"status": "x"}\'); raise SystemExit(3)']
    with pytest.raises(EdgeAgentError, match="exited with status 3"):
        list(run_pull(command))


def test_a_pull_given_up_ends_its_process(tmp_path: Path) -> None:
    endless = 'import signal; print(\'{"status": "x"}\', flush=True); signal.pause()'
    events = run_pull([sys.executable, "-c", endless])
    assert next(events) == {"status": "x"}
    events.close()  # type: ignore[attr-defined]


def test_the_local_library_is_the_registry(tmp_path: Path) -> None:
    state = filled(tmp_path)
    with Store(state.database) as store:
        names = [model.name for model in LocalModels(LocalState(state, store)).registered()]
    assert names == ["tiny", "twin"]


# ---- measurements --------------------------------------------------------------------------------


@pytest.fixture
def with_history(monkeypatch: pytest.MonkeyPatch) -> None:
    """The routes in every front, whether or not app.py has them already."""
    routes = tuple(dict.fromkeys((*server_app.API, *history.ROUTES)))
    monkeypatch.setattr(server_app, "API", routes)


@contextmanager
def both(tmp_path: Path) -> Iterator[list[Models]]:
    """A library through a daemon and one without, each over a store of its own."""
    (tmp_path / "a").mkdir()
    with serving(tmp_path / "a"), open_models(tmp_path / "a", {}) as through_daemon:
        assert isinstance(through_daemon, DaemonModels)
        with open_models(tmp_path / "b", {}) as directly:
            assert isinstance(directly, LocalModels)
            yield [through_daemon, directly]


def documents(count: int, notes: str = "") -> list[dict[str, Any]]:
    head = {"v": 1, "run_id": "r1", "model": "tiny", "scenario": "chat", "notes": [notes]}
    return [{**head, "avg_ts": float(number)} for number in range(count)]


@pytest.mark.usefixtures("with_history")
def test_benchmarks_are_the_same_with_and_without_a_daemon(tmp_path: Path) -> None:
    sent = documents(3, "ಕನ್ನಡ")
    with both(tmp_path) as libraries:
        for library in libraries:
            assert library.benchmarks(9) == []
            assert library.add_benchmarks([]) == 0
            assert library.add_benchmarks(sent) == 3
            assert library.benchmarks(2) == sent[:0:-1]


@pytest.mark.usefixtures("with_history")
def test_a_long_run_is_sent_in_parts(tmp_path: Path) -> None:
    """210 documents of 20 kB are four times what one request may carry."""
    sent = documents(210, "x" * 20_000)
    with both(tmp_path) as (through_daemon, _):
        assert through_daemon.add_benchmarks(sent) == 210
        assert through_daemon.benchmarks(99_999) == sent[::-1]


@pytest.mark.usefixtures("with_history")
def test_a_document_that_cannot_be_stored_is_an_error_on_both_ways(tmp_path: Path) -> None:
    wrong = [{**documents(1)[0], "v": 3}]
    with both(tmp_path) as libraries:
        for library in libraries:
            with pytest.raises(RequestError):
                library.add_benchmarks(wrong)


@pytest.mark.usefixtures("with_history")
def test_telemetry_has_one_form_on_both_ways(tmp_path: Path) -> None:
    now = time.time()
    with both(tmp_path) as (through_daemon, directly):
        assert isinstance(directly, LocalModels)
        rows = [SampleRow(now - 5.0 - 10.0 * n, 10.0, watts=2.5) for n in range(100)]
        directly.local.store.add_samples(rows).result()
        directly.local.store.add_generation(
            GenerationRow(1.0, 2.0, "tiny", "x", prompt_text="secret")
        )
        ours = directly.telemetry(600.0)
        theirs = through_daemon.telemetry(600.0)
    assert [point["watts"] for point in ours["points"]] == [2.5] * 60
    assert "prompt_text" not in ours["generations"][0]
    for answer in (ours, theirs):
        TelemetryAnswer.model_validate(answer)
    assert set(theirs) == set(ours) == {"now", "points", "generations"}


def test_model_names_are_completed(tmp_path: Path) -> None:
    filled(tmp_path)
    environ = {
        **os.environ,
        "EDGE_AGENT_STATE_DIR": str(tmp_path),
        "_EDGE_AGENT_COMPLETE": "complete_bash",
        "COMP_WORDS": "edge-agent show t",
        "COMP_CWORD": "2",
    }
    command = [sys.executable, "-m", "edge_agent.cli"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    assert done.stdout.split() == ["tiny", "twin"], done.stderr
