"""The program as a whole: help, exit codes, errors, --json, serve, and the daemon's state."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_runner import cli, filled
from http_front import serving

from edge_agent import __version__
from edge_agent.cli.commands.engine import until_text
from edge_agent.cli.commands.serve import daemon_command
from edge_agent.cli.main import build_app, main_with
from edge_agent.cli.terminal import Terminal, aligned, error_lines, printable
from edge_agent.config import settings_from_json
from edge_agent.errors import EdgeAgentError

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = [info.name for info in build_app().registered_commands if info.name]
NEEDS_A_DAEMON = (["run", "hi"], ["chat"], ["ps"], ["stop"], ["status"])


# ---- the program as a whole --------------------------------------------------------------------


def test_help_loads_nothing_heavy() -> None:
    """Each of these costs 50 to 400 ms here and several times that on a Jetson Nano."""
    heavy = ["rich", "prompt_toolkit", "pydantic", "pydantic_settings", "aiohttp", "sqlite3"]
    heavy += ["numpy", "llama_cpp", "huggingface_hub", "asyncio", "msgspec"]
    code = (
        "import sys, os\n"
        "from edge_agent.cli.main import main_with\n"
        "from edge_agent.cli.terminal import process_terminal\n"
        "main_with(['--help'], process_terminal(os.environ))\n"
        f"print('loaded:', *[name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "loaded:", done.stdout + done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(command, "--help").code == 0
    shown = capsys.readouterr().out
    assert f"Usage: edge-agent {command}" in shown
    assert f"Examples:\n    edge-agent {command}" in shown or f"| edge-agent {command}" in shown
    assert "--state-dir" in shown


def test_the_reference_is_what_help_prints() -> None:
    script = [sys.executable, str(ROOT / "docs" / "make_cli.py")]
    done = subprocess.run(script, capture_output=True, text=True, check=True)
    hint = "run: .venv/bin/python docs/make_cli.py > docs/cli.md"
    assert (ROOT / "docs" / "cli.md").read_text() == done.stdout, hint


def test_version_and_no_command() -> None:
    version = cli("--version")
    assert (version.code, version.out) == (0, f"edge-agent {__version__}\n")
    nothing = cli()
    assert nothing.code == 0
    assert "Commands:" in nothing.out


@pytest.mark.parametrize(
    "argv",
    [
        ["nosuch"],
        ["list", "extra"],
        ["list", "--nosuch"],
        ["show"],
        ["run", "--temperature", "hot", "hi"],
        ["run", "--top-p", "2", "hi"],
        ["run", "a", "b", "c"],
        ["serve", "--ctx", "many"],
        ["serve", "--port", "70000"],
        ["serve", "--memory", "lots"],
        ["serve", "--keep-alive", "soon"],
    ],
)
def test_a_usage_error_is_two_lines_and_exit_code_2(argv: list[str], tmp_path: Path) -> None:
    done = cli(*argv, state_dir=tmp_path)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert "\nhint:  " in done.err
    assert "Traceback" not in done.err


def test_the_error_of_a_command_names_its_own_help() -> None:
    assert "`edge-agent show --help`" in cli("show").err


@pytest.mark.parametrize("argv", NEEDS_A_DAEMON)
def test_without_a_daemon_the_hint_starts_one(argv: list[str], tmp_path: Path) -> None:
    done = cli(*argv, state_dir=tmp_path)
    assert (done.code, done.out) == (1, "")
    assert "error: no daemon answers" in done.err
    assert "edge-agent serve --model smollm2-135m" in done.err


def test_json_is_one_document_in_failure_too(tmp_path: Path) -> None:
    done = cli("ps", "--json", state_dir=tmp_path)
    assert done.code == 1
    assert done.document()["error"]["code"] == "daemon_not_running"
    assert cli("show", "--json").document()["error"]["code"] == "usage_error"


def test_state_dir_works_before_and_after_the_command(tmp_path: Path) -> None:
    with serving(tmp_path):
        for argv in (["--state-dir", str(tmp_path), "ps"], ["ps", "--state-dir", str(tmp_path)]):
            done = cli(*argv, "--json", environ={"HOME": "/nonexistent"})
            assert done.document()["models"][0]["name"] == "tiny"


def test_a_bug_of_ours_is_reported_without_a_traceback(tmp_path: Path) -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise RuntimeError("disk on fire")

    err = io.StringIO()
    code = main_with(["--version"], Terminal(io.StringIO(), Broken(), err, {}))
    assert code == 1
    assert "RuntimeError in test_main.py line" in err.getvalue()
    assert "Traceback" not in err.getvalue()


def test_a_reader_that_leaves_ends_the_command_quietly(tmp_path: Path) -> None:
    with serving(tmp_path):
        read_end, write_end = os.pipe()
        os.close(read_end)
        done = subprocess.run(
            [sys.executable, "-m", "edge_agent.cli", "list", "--state-dir", str(tmp_path)],
            stdout=write_end,
            stderr=subprocess.PIPE,
        )
        os.close(write_end)
    assert (done.returncode, done.stderr) == (141, b"")


def test_closed_streams_are_no_crash(tmp_path: Path) -> None:
    command = f"{sys.executable} -m edge_agent.cli --state-dir {tmp_path} run hi <&- 2>&1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout.startswith("error: no daemon answers")


def test_the_training_program_helps_without_torch() -> None:
    program = (
        "import io, os, sys\nfrom edge_agent.cli.terminal import process_terminal\n"
        "from train_host.cli import main_with\n"
        "code = main_with(['sft', '--help'], process_terminal(os.environ))\n"
        "assert not {'torch', 'transformers', 'llama_cpp'} & set(sys.modules)\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "Usage: edge-train sft" in done.stdout


# ---- ps, stop, status, doctor ------------------------------------------------------------------


def test_ps_shows_the_loaded_model(tmp_path: Path) -> None:
    with serving(tmp_path):
        row = cli("ps", state_dir=tmp_path).out.splitlines()[1].split()
    assert row[:5] == ["tiny", "-", "1", "kB", "4096"]


def test_stop_unloads_and_says_when_there_is_nothing_to(tmp_path: Path) -> None:
    with serving(tmp_path) as front:
        assert cli("stop", state_dir=tmp_path).out == "stopped tiny\n"
        assert front.supervisor.unloads == 1
        assert cli("stop", "--json", state_dir=tmp_path).document() == {"stopped": None}
        assert cli("stop", "other", state_dir=tmp_path).err == "other is not loaded\n"
        assert cli("stop", "nosuch", state_dir=tmp_path).code == 1
        assert cli("ps", state_dir=tmp_path).err.startswith("no model is loaded")


def test_status_of_a_running_daemon(tmp_path: Path) -> None:
    with serving(tmp_path):
        document = cli("status", "--json", state_dir=tmp_path).document()
        table = cli("status", state_dir=tmp_path).out
    assert document["running"] is True
    assert document["engine"]["state"] == "ready"
    assert "4096 tokens x 2 slots" in table
    assert f"{tmp_path}" in table


def test_status_without_a_daemon_is_a_document_and_exit_code_1(tmp_path: Path) -> None:
    done = cli("status", "--json", state_dir=tmp_path)
    assert done.code == 1
    assert done.document() == {"running": False, "sockets": [str(tmp_path / "agent.sock")]}
    assert "edge-agent serve" in done.err


def test_until_counts_down() -> None:
    assert until_text(300.0, 0) == "5m00s from now"
    assert until_text(300.0, 301) == "now"
    assert until_text(None, 0) == "forever"


def test_doctor_lists_checks_and_changes_nothing(tmp_path: Path) -> None:
    done = cli("doctor", "--json", state_dir=tmp_path / "none", environ=os.environ)
    document = done.document()
    assert done.code == (0 if document["healthy"] else 1)
    assert {"name", "status", "detail", "hint"} <= document["checks"][0].keys()
    assert not (tmp_path / "none").exists()


def test_doctor_checks_the_registered_models(tmp_path: Path) -> None:
    filled(tmp_path)
    done = cli("doctor", state_dir=tmp_path)
    assert done.code == 1, "its file is 4 bytes and not 1234"
    assert "fail  model tiny" in done.out


# ---- serve -------------------------------------------------------------------------------------


def test_serve_becomes_the_daemon_with_every_setting_resolved(tmp_path: Path) -> None:
    given = {"port": "none", "ctx": "max", "slots": "2", "memory_budget_bytes": "2G"}
    flags = {"state_dir": tmp_path, **given, "keep_alive_s": "5m"}
    *command, document = daemon_command(flags)
    assert command == [sys.executable, "-m", "edge_agent.daemon", "--settings"]
    settings = settings_from_json(document)
    assert (settings.port, settings.ctx, settings.slots) == (None, 0, 2)
    assert (settings.memory_budget_bytes, settings.keep_alive_s) == (2_000_000_000, 300)
    assert settings.state_dir == tmp_path


# ---- text --------------------------------------------------------------------------------------


def test_indic_text_and_emoji_are_printable() -> None:
    for text in ("क्\u200dष नमस्ते", "ಕನ್ನಡ", "👩\u200d🔬", "a\tb\n"):
        assert printable(text) == text


def test_columns_line_up() -> None:
    assert aligned([("A", "B"), ("long", "x")]) == ["A     B", "long  x"]


def test_an_error_without_a_hint_is_one_line() -> None:
    assert error_lines(EdgeAgentError("x failed", "y")) == ["error: x failed: y"]
