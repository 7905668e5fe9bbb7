"""The command line: argument rules, output contracts, exit codes, over a real front or none."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeSupervisor, model_row
from http_front import serving

from converters import cli as convert_cli
from edge_agent import __version__
from edge_agent.cli import build_app, main_with
from edge_agent.commands.engine import until_text
from edge_agent.commands.persona import system_prompt
from edge_agent.commands.run import model_and_prompt, response_format
from edge_agent.commands.serve import (
    ServeOptions,
    daemon_command,
    flags_of,
    parse_duration,
    parse_size,
)
from edge_agent.config import Settings, settings_from_json
from edge_agent.errors import EdgeAgentError, TemplateError, UsageError
from edge_agent.library import LocalLibrary, run_pull
from edge_agent.state_dir import StateDir
from edge_agent.store import Store
from edge_agent.terminal import Terminal, aligned, error_lines, printable
from train_host import cli as train_cli

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = [info.name for info in build_app().registered_commands if info.name]
NEEDS_A_DAEMON = (["run", "hi"], ["chat"], ["ps"], ["stop"], ["status"])


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    def document(self) -> Any:
        return json.loads(self.out)


class Screen(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def cli(
    *argv: str,
    state_dir: Path | None = None,
    stdin: str | None = "",
    environ: Mapping[str, str] | None = None,
    on_screen: bool = False,
) -> Outcome:
    """One command in this process. `stdin` None stands for a terminal."""
    out = Screen() if on_screen else io.StringIO()
    err = io.StringIO()
    reader = Screen() if stdin is None else io.StringIO(stdin)
    given = {"EDGE_AGENT_STATE_DIR": str(state_dir)} if state_dir else {}
    code = main_with(argv, Terminal(reader, out, err, {**given, **(environ or {})}))
    return Outcome(code, out.getvalue(), err.getvalue())


def program(
    *argv: str, state_dir: Path, stdin: Any = subprocess.DEVNULL, data: str | None = None
) -> subprocess.CompletedProcess[str]:
    """The real program."""
    return subprocess.run(
        [sys.executable, "-m", "edge_agent.cli", *argv],
        env={**os.environ, "EDGE_AGENT_STATE_DIR": str(state_dir)},
        **({"input": data} if data is not None else {"stdin": stdin}),
        capture_output=True,
        text=True,
        timeout=60,
    )


# ---- the program as a whole --------------------------------------------------------------------


def test_help_loads_nothing_heavy() -> None:
    """Each of these costs 50 to 400 ms here and several times that on a Jetson Nano."""
    heavy = ["rich", "prompt_toolkit", "pydantic", "pydantic_settings", "aiohttp", "sqlite3"]
    heavy += ["numpy", "llama_cpp", "huggingface_hub", "asyncio", "msgspec"]
    code = (
        "import sys, os\n"
        "from edge_agent.cli import main_with\n"
        "from edge_agent.terminal import process_terminal\n"
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
    assert cli("--version") == Outcome(0, f"edge-agent {__version__}\n", "")
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
    assert "RuntimeError in test_cli.py line" in err.getvalue()
    assert "Traceback" not in err.getvalue()


def test_a_reader_that_leaves_ends_the_command_quietly(tmp_path: Path) -> None:
    with serving(tmp_path):
        read_end, write_end = os.pipe()
        os.close(read_end)
        done = subprocess.run(
            [sys.executable, "-m", "edge_agent.cli", "list", "--state-dir", str(tmp_path)],
            stdout=write_end,
            stderr=subprocess.PIPE,
            timeout=60,
        )
        os.close(write_end)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize(("main", "word"), [(convert_cli, "edge-convert"), (train_cli, "edge-tr")])
def test_the_commands_of_later_issues_say_so(main: Any, word: str) -> None:
    out, err = io.StringIO(), io.StringIO()
    assert main.main_with([], out, err) == 1
    assert word in err.getvalue()
    assert "hint:" in err.getvalue()
    assert main.main_with(["--help"], out, err) == 0
    assert f"Usage: {word}" in out.getvalue()


# ---- run ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "piped", "model", "prompt"),
    [
        (["m", "hi"], None, "m", "hi"),
        (["unknown", "hi"], None, "unknown", "hi"),
        (["hi"], None, None, "hi"),
        (["hi"], "", None, "hi"),
        (["m"], "text", "m", "text"),
        (["m:latest"], "text", "m:latest", "text"),
        (["Shorten:"], "text", None, "Shorten:\n\ntext"),
        (["m", "Shorten:"], "text", "m", "Shorten:\n\ntext"),
        ([], "text", None, "text"),
    ],
)
def test_which_argument_is_the_model(
    given: list[str], piped: str | None, model: str | None, prompt: str
) -> None:
    assert model_and_prompt(given, piped, lambda: ["m"]) == (model, prompt)


@pytest.mark.parametrize(("given", "piped"), [([], None), ([], " \n"), (["m"], None), (["m"], "")])
def test_no_prompt_is_a_usage_error(given: list[str], piped: str | None) -> None:
    with pytest.raises(UsageError, match="no prompt") as caught:
        model_and_prompt(given, piped, lambda: ["m"])
    assert "edge-agent chat" in caught.value.hint


def test_bytes_that_are_not_utf_8_are_refused() -> None:
    with pytest.raises(UsageError, match="UTF-8"):
        model_and_prompt(["m", b"\xff".decode("utf-8", "surrogateescape")], None, lambda: ["m"])


def test_run_streams_the_answer_and_nothing_else_to_stdout(tmp_path: Path) -> None:
    with serving(tmp_path) as front:
        done = cli("run", "tiny", "hi", "--seed", "7", "--no-cache-prompt", state_dir=tmp_path)
        (request,) = front.supervisor.requests
    assert done == Outcome(0, "Hello wörld\n", "")
    assert (request.sampling.seed, request.cache_prompt) == (7, False)
    assert [(m.role, m.content) for m in request.messages or []] == [("user", "hi")]


def test_run_reads_what_is_piped_into_it(tmp_path: Path) -> None:
    with serving(tmp_path) as front:
        done = program("run", "tiny", "Shorten:", state_dir=tmp_path, data="ein Text")
        assert done.stdout == "Hello wörld\n"
        assert (front.supervisor.requests[0].messages or [])[0].content == "Shorten:\n\nein Text"


def test_run_does_not_wait_for_dev_null(tmp_path: Path) -> None:
    with serving(tmp_path):
        assert program("run", "hi", state_dir=tmp_path).stdout == "Hello wörld\n"


def test_run_json_is_one_document(tmp_path: Path) -> None:
    with serving(tmp_path):
        document = cli("run", "tiny", "hi", "--json", state_dir=tmp_path).document()
    assert (document["model"], document["text"]) == ("tiny", "Hello wörld")
    assert document["finish_reason"] == "stop"
    assert document["usage"]["prompt_tokens"] == 10
    assert document["timings"]["cache_n"] == 4
    assert document["timings"]["total_s"] > 0


def test_run_verbose_prints_the_block_on_stderr(tmp_path: Path) -> None:
    with serving(tmp_path):
        done = cli("run", "hi", "--verbose", state_dir=tmp_path)
    assert done.out == "Hello wörld\n"
    titles = [line.split(":")[0] for line in done.err.splitlines()]
    assert titles == [
        *("total duration", "load duration", "cached tokens"),
        *("prompt eval count", "prompt eval duration", "prompt eval rate"),
        *("eval count", "eval duration", "eval rate"),
    ]


def test_run_raw_completes_plain_text(tmp_path: Path) -> None:
    with serving(tmp_path) as front:
        assert cli("run", "--raw", "tiny", "Once", state_dir=tmp_path).code == 0
        assert front.supervisor.requests[0].text == "Once"
    clash = cli("run", "--raw", "--system", "Be brief", "tiny", "Once", state_dir=tmp_path)
    assert clash.code in (1, 2)


def test_a_base_model_hints_at_raw(tmp_path: Path) -> None:
    error = TemplateError("tiny has no chat template", "it is a base model")
    with serving(tmp_path, FakeSupervisor(error=error)):
        done = cli("run", "tiny", "hi", state_dir=tmp_path)
    assert done.code == 1
    assert "hint:  a base model completes text: edge-agent run --raw tiny PROMPT" in done.err


def test_a_file_without_a_chat_template_is_told(tmp_path: Path) -> None:
    with serving(tmp_path) as front:
        front.store.add_model(replace(model_row("tiny"), chat_template=None))
        for argv in (["run", "tiny", "hi"], ["run", "hi"], ["chat", "tiny"]):
            assert "run --raw" in cli(*argv, state_dir=tmp_path).err, argv
        assert cli("run", "--raw", "tiny", "hi", state_dir=tmp_path).err == ""


def test_an_embedded_model_that_is_not_pulled_hints_at_the_pull(tmp_path: Path) -> None:
    with serving(tmp_path):
        for argv in (["run", "smollm2-135m", "hi"], ["chat", "smollm2-135m"]):
            done = cli(*argv, state_dir=tmp_path)
            assert done.code == 1
            assert "hint:  edge-agent pull embedded:smollm2-135m" in done.err


def test_a_cut_answer_is_told(tmp_path: Path) -> None:
    with serving(tmp_path, FakeSupervisor(finish_reason="length")):
        assert "--max-tokens" in cli("run", "hi", state_dir=tmp_path).err


def test_a_terminal_never_sees_the_model_s_escape_sequences(tmp_path: Path) -> None:
    with serving(tmp_path, FakeSupervisor(["\x1b]0;title\x07a\x9b2Jb"])):
        assert cli("run", "hi", state_dir=tmp_path, on_screen=True).out == "]0;titlea2Jb\n"
        assert cli("run", "hi", state_dir=tmp_path).out == "\x1b]0;title\x07a\x9b2Jb\n"


def test_a_persona_is_text_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "persona.txt"
    file.write_text("Answer in Kannada.\n")
    assert system_prompt(str(file)) == "Answer in Kannada."
    assert system_prompt("Be brief.") == "Be brief."
    assert system_prompt("Brief.") == "Brief."
    assert system_prompt("x" * 5000) == "x" * 5000
    assert system_prompt(None) == ""


@pytest.mark.parametrize("value", ["persona.txt", "./persona", "~/nosuch/persona"])
def test_a_misspelt_persona_file_is_not_sent_as_the_persona(value: str) -> None:
    with pytest.raises(UsageError, match="no such file"):
        system_prompt(value)


def test_a_binary_persona_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not UTF-8"):
        system_prompt(str(tmp_path / "x"))


def test_format_is_json_or_a_schema_file(tmp_path: Path) -> None:
    file = tmp_path / "s.json"
    file.write_text('{"type": "object"}')
    assert response_format("json") == {"type": "json_object"}
    asked = response_format(str(file))
    assert asked is not None
    assert asked["json_schema"]["schema"] == {"type": "object"}
    for text in ("[1]", "{broken"):
        file.write_text(text)
        with pytest.raises(UsageError, match="not"):
            response_format(str(file))
    with pytest.raises(UsageError, match="cannot read"):
        response_format("nosuch.json")


def test_a_schema_reaches_the_engine(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    (tmp_path / "s.json").write_text(json.dumps(schema))
    with serving(tmp_path) as front:
        done = cli("run", "hi", "--format", str(tmp_path / "s.json"), state_dir=tmp_path)
        assert (done.code, done.err) == (0, "")
        assert front.supervisor.requests[0].json_schema == schema


# ---- the registry, through a daemon and without one ---------------------------------------------


def filled(tmp_path: Path) -> StateDir:
    """A state directory without a daemon that holds two models sharing one file."""
    state = StateDir(tmp_path)
    state.models.mkdir()
    (state.models / "x.gguf").write_bytes(b"gguf")
    with Store(state.database) as store:
        store.add_model(model_row("tiny", str(state.models / "x.gguf")))
        store.add_model(model_row("twin", "models/x.gguf"))
    return state


def test_list_says_the_same_with_and_without_a_daemon(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with serving(tmp_path / "a", FakeSupervisor(known=("tiny", "twin"))):
        through_daemon = cli("list", "--json", state_dir=tmp_path / "a").document()
    (tmp_path / "b").mkdir()
    filled(tmp_path / "b")
    directly = cli("list", "--json", state_dir=tmp_path / "b").document()
    assert directly == through_daemon
    assert directly["models"][0] == {
        "name": "tiny",
        "size_bytes": 1234,
        "sha256": "ab" * 32,
        "architecture": "llama",
        "parameters": "134.52M",
        "quantization": "Q4_1",
        "added_at": "2023-11-14T22:13:20Z",
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
    sleeper = 'import time; print(\'{"status": "x"}\', flush=True); time.sleep(60)'
    events = run_pull([sys.executable, "-c", sleeper])
    assert next(events) == {"status": "x"}
    events.close()  # type: ignore[attr-defined]


def test_the_local_library_is_the_registry(tmp_path: Path) -> None:
    state = filled(tmp_path)
    with Store(state.database) as store:
        names = [entry.name for entry in LocalLibrary(state, store).entries()]
    assert names == ["tiny", "twin"]


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
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["tiny", "twin"], done.stderr


# ---- ps, stop, status, doctor ------------------------------------------------------------------


def test_ps_shows_the_loaded_model(tmp_path: Path) -> None:
    with serving(tmp_path):
        assert cli("ps", state_dir=tmp_path).out.splitlines()[1].split()[:4] == (
            ["tiny", "1", "kB", "4096"]
        )


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
    assert until_text("1970-01-01T00:05:00Z", 0) == "5m00s from now"
    assert until_text("1970-01-01T00:05:00Z", 301) == "now"
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
    options = ServeOptions(
        state_dir=tmp_path, port="none", ctx="max", slots="2", memory="2G", keep_alive="5m"
    )
    *command, document = daemon_command(flags_of(options))
    assert command == [sys.executable, "-m", "edge_agent.daemon", "--settings"]
    settings = settings_from_json(document)
    assert (settings.port, settings.ctx, settings.slots) == (None, 0, 2)
    assert (settings.memory_budget_bytes, settings.keep_alive_s) == (2_000_000_000, 300)
    assert settings.state_dir == tmp_path


def test_serve_flags_are_settings() -> None:
    ours = {"memory": "memory_budget_bytes", "keep_alive": "keep_alive_s"}
    names = {ours.get(name, name) for name in ServeOptions.__dataclass_fields__}
    assert names <= Settings.model_fields.keys()


@pytest.mark.parametrize("text", ["", "G", "-1", "2X", "1.2.3"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_size(text)


@pytest.mark.parametrize("text", ["", "m", "5d", "nan", "1m x"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_duration(text)


# ---- text --------------------------------------------------------------------------------------


def test_indic_text_and_emoji_are_printable() -> None:
    for text in ("क्\u200dष नमस्ते", "ಕನ್ನಡ", "👩\u200d🔬", "a\tb\n"):
        assert printable(text) == text


def test_columns_line_up() -> None:
    assert aligned([("A", "B"), ("long", "x")]) == ["A     B", "long  x"]


def test_an_error_without_a_hint_is_one_line() -> None:
    assert error_lines(EdgeAgentError("x failed", "y")) == ["error: x failed: y"]
