"""edge-agent adapters, and the adapters' names in run, chat, list, ps, show and status."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cli_runner import Outcome, cli
from http_front import Front, serving
from random_adapter import write_adapter
from tiny_state import register_tiny

from edge_agent.cli.commands import adapters
from edge_agent.models.adapter_registry import AdapterRegistry
from edge_agent.state_dir import StateDir
from edge_agent.store.store import Store

COMMANDS = [info.name for info in adapters.build_group().registered_commands if info.name]


@pytest.fixture
def state(tmp_path: Path, tiny_model: Path) -> Path:
    """A state directory without a daemon: model tiny, its adapter a, passed and proved."""
    with Store(tmp_path / "edge-agent.db") as store:
        register_tiny(store, tiny_model)
        registry = AdapterRegistry(store, tmp_path)
        write_adapter(tmp_path / "source.gguf", tiny_model)
        registry.add("tiny", "a", tmp_path / "source.gguf", source="trained", settings={"r": 4})
        registry.set_gate("tiny", "a", GATE, True)
    return tmp_path


GATE = {
    "passed": True,
    "reasons": [],
    "checks": {"repetition": {"before": 0.0, "after": 0.1, "limit": 0.2, "passed": True}},
    "samples": [],
}


@contextmanager
def daemon(tmp_path: Path) -> Iterator[Front]:
    """One that knows tiny with the adapters a and b, any files."""
    with serving(tmp_path, model="tiny") as front:
        for name in "ab":
            (tmp_path / name).write_text(f"adapter {name}")
            registry = front.supervisor.registry
            registry.add("tiny", name, tmp_path / name, source="trained", settings={"r": 4})
            registry.set_gate("tiny", name, GATE, True)
        yield front


def adapters_of(outcome: Outcome) -> list[tuple[str, bool]]:
    return [(one["name"], one["is_active"]) for one in outcome.document()["adapters"]]


# ---- the group -----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("adapters", command, "--help").code == 0
    shown = capsys.readouterr().out
    assert f"Usage: edge-agent adapters {command}" in shown
    assert f"Examples:\n    edge-agent adapters {command}" in shown
    for flag in ("--state-dir", "--json", "--model"):
        assert flag in shown


def test_the_group_alone_shows_its_commands() -> None:
    names = ("list", "show", "activate", "deactivate", "rollback", "rm", "export", "import")
    assert tuple(COMMANDS) == names
    shown = cli("adapters")
    assert shown.code == 0 and all(f"\n  {name} " in shown.out for name in COMMANDS)
    wrong = cli("adapters", "nosuch")
    assert wrong.code == 2 and "`edge-agent adapters --help`" in wrong.err


# ---- without a daemon ----------------------------------------------------------------------------


def test_a_life_of_an_adapter_without_a_daemon(state: Path) -> None:
    assert adapters_of(cli("adapters", "list", "--json", state_dir=state)) == [("a", False)]
    done = cli("adapters", "activate", "a", state_dir=state)
    assert (done.code, done.out) == (0, "tiny is answered by adapter a\n")
    assert "tried out when the daemon starts" in done.err
    listed = cli("adapters", "list", state_dir=state).out.splitlines()
    titles = ["MODEL", "NAME", "ACTIVE", "STATUS", "SOURCE", "SIZE", "SHA-256", "CREATED"]
    assert listed[0].split() == titles
    assert listed[1].startswith("tiny   a     * (not tried out yet)  passed")
    assert cli("adapters", "rm", "a", state_dir=state).code == 1
    done = cli("adapters", "rollback", "--json", state_dir=state)
    assert done.document() == {"model": "tiny", "active": None}
    refused = cli("adapters", "activate", "a", state_dir=state)
    assert refused.code == 1 and "it was rolled back" in refused.err and "--force" in refused.err
    assert cli("adapters", "activate", "a", "--force", state_dir=state).code == 0
    assert cli("adapters", "deactivate", state_dir=state).out == "tiny is answered by the base\n"
    assert cli("adapters", "rm", "a", state_dir=state).out == "removed a\n"
    nothing = cli("adapters", "list", state_dir=state)
    assert (nothing.out, nothing.code) == ("", 0) and "edge-agent adapt run" in nothing.err


def test_show_says_what_the_gate_found(state: Path) -> None:
    shown = cli("adapters", "show", "a", state_dir=state).out
    assert "setting r" in shown and "check repetition" in shown
    assert "before 0.0 after 0.1 limit 0.2 passed True" in shown
    assert cli("adapters", "show", "a", "--json", state_dir=state).document()["gate"] == GATE
    unknown = cli("adapters", "show", "nosuch", state_dir=state)
    assert unknown.code == 1 and "it has: a" in unknown.err


def test_export_and_import_keep_every_byte(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(state)
    done = cli("adapters", "export", "a", "--json", state_dir=state)
    assert done.document()["path"] == str(state / "a.gguf")
    assert (state / "a.gguf").read_bytes() == (state / "source.gguf").read_bytes()
    again = cli("adapters", "export", "a", state_dir=state)
    assert again.code == 2 and "exists" in again.err
    assert cli("adapters", "rm", "a", state_dir=state).code == 0
    (state / "a.gguf").rename(state / "From A Friend.gguf")
    done = cli("adapters", "import", "From A Friend.gguf", state_dir=state)
    sha256 = hashlib.sha256((state / "source.gguf").read_bytes()).hexdigest()
    assert done.out == f"tiny:from-a-friend, SHA-256 {sha256}\n"
    document = cli("adapters", "show", "from-a-friend", "--json", state_dir=state).document()
    assert (document["source"], document["status"]) == ("imported", "candidate")
    assert [path.name for path in state.iterdir() if path.name.endswith(".tmp")] == []


def test_an_import_that_is_no_adapter_says_why(state: Path, tiny_model: Path) -> None:
    for path, why in ((tiny_model, "it is not an adapter"), (state / "no.gguf", "No such file")):
        done = cli("adapters", "import", str(path), state_dir=state)
        assert done.code == 1 and why in done.err and str(path) in done.err
    reserved = cli("adapters", "import", str(state / "source.gguf"), "--name", "base",
                   state_dir=state)  # fmt: skip
    assert reserved.code == 1 and "not 'base' or 'latest'" in reserved.err


def test_an_export_to_nowhere_leaves_nothing(state: Path) -> None:
    target = state / "no" / "a.gguf"
    done = cli("adapters", "export", "a", "-o", str(target), state_dir=state)
    assert done.code == 2 and f"cannot write {target}" in done.err
    unknown = cli("adapters", "export", "nosuch", "-o", str(state / "x"), state_dir=state)
    assert unknown.code == 1 and not (state / "x").exists()
    assert [path.name for path in state.iterdir() if path.name.endswith(".tmp")] == []


def test_which_model_is_meant_must_be_clear(state: Path, tiny_model: Path) -> None:
    with Store(state / "edge-agent.db") as store:
        old = store.model("tiny")
        store.add_model(type(old)(**{**vars(old), "name": "twin"}))
    done = cli("adapters", "activate", "a", state_dir=state)
    assert done.code == 2 and "registered: tiny, twin" in done.err
    assert cli("adapters", "activate", "a", "--model", "tiny", state_dir=state).code == 0
    (state / "config.toml").write_text('model = "tiny:base"\n')
    assert cli("adapters", "rollback", state_dir=state).code == 0
    assert cli("adapters", "activate", "a", "--model", "nosuch", state_dir=state).code == 1


def test_show_tells_what_was_learned_and_the_verdict(state: Path, tiny_model: Path) -> None:
    settings = {"r": 4, "rows": 12, "data": "feedback", "train_s": 75.0, "joules": 40.2}
    gate = {
        **GATE,
        "passed": False,
        "reasons": ["canned: 0.8"],
        "advice": ["Give more wordings."],
        "samples": [{"prompt": "q", "before": "old", "after": "new"}],
    }
    with Store(state / "edge-agent.db") as store:
        registry = AdapterRegistry(store, state)
        registry.add("tiny", "night", state / "source.gguf", source="trained", settings=settings)
        registry.set_gate("tiny", "night", gate, False)
    shown = cli("adapters", "show", "night", state_dir=state).out
    assert "Learned 12 rows that users corrected or liked, 20" in shown and "1m15s, 40 J." in shown
    assert shown.splitlines()[-8:] == [
        *("Refused: night is kept and does not answer.", "", "asked:  q", "before: old"),
        *("after:  new", "", "- Give more wordings.", "  canned: 0.8"),
    ]
    assert "Passed: a does not answer yet" in cli("adapters", "show", "a", state_dir=state).out


def test_the_lock_is_held_and_released(state: Path) -> None:
    holder = StateDir(state)
    holder.acquire()
    done = cli("adapters", "activate", "a", "--json", state_dir=state)
    holder.release()
    assert done.code == 1 and done.document()["error"]["code"] == "daemon_running"
    assert cli("adapters", "activate", "a", state_dir=state).code == 0


def test_rm_of_a_model_takes_its_adapters_along(state: Path) -> None:
    assert cli("rm", "tiny", state_dir=state).code == 0
    assert list((state / "adapters" / "tiny").iterdir()) == []
    assert cli("adapters", "list", "--json", state_dir=state).document() == {"adapters": []}


# ---- through a daemon ----------------------------------------------------------------------------


def test_the_same_commands_through_a_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with daemon(tmp_path) as front:
        done = cli("adapters", "activate", "a", state_dir=tmp_path)
        assert (done.code, done.out, done.err) == (0, "tiny is answered by adapter a\n", "")
        assert front.supervisor.registry.is_proved("tiny")
        listed = cli("adapters", "list", "--json", state_dir=tmp_path)
        assert adapters_of(listed) == [("a", True), ("b", False)]
        assert cli("adapters", "activate", "b", "--json", state_dir=tmp_path).document() == (
            {"model": "tiny", "active": "b"}
        )
        assert "by adapter a" in cli("adapters", "rollback", state_dir=tmp_path).out
        assert "by the base" in cli("adapters", "deactivate", state_dir=tmp_path).out
        shown = cli("adapters", "show", "b", "--json", state_dir=tmp_path).document()
        assert (shown["status"], shown["gate"]) == ("rolled_back", GATE)
        assert cli("adapters", "export", "b", "-o", "out.gguf", state_dir=tmp_path).code == 0
        assert (tmp_path / "out.gguf").read_bytes() == b"adapter b"
        assert cli("adapters", "rm", "b", "--model", "tiny", state_dir=tmp_path).code == 0
        done = cli("adapters", "import", "out.gguf", state_dir=tmp_path)
        assert done.out.startswith("tiny:out, SHA-256 ")
        for command in (["show", "nosuch"], ["rm", "nosuch"], ["export", "nosuch"]):
            failed = cli("adapters", *command, state_dir=tmp_path)
            assert failed.code == 1 and "it has: a, out" in failed.err, command
        other = cli("adapters", "list", "--model", "nosuch", state_dir=tmp_path)
        assert other.code == 1 and "no model named 'nosuch'" in other.err


def test_documents_are_the_same_with_and_without_a_daemon(tmp_path: Path) -> None:
    with daemon(tmp_path):
        through_daemon = [
            cli("adapters", *command, "--json", state_dir=tmp_path).document()
            for command in (["list"], ["show", "a"])
        ]
    directly = [
        cli("adapters", *command, "--json", state_dir=tmp_path).document()
        for command in (["list", "--model", "tiny"], ["show", "a", "--model", "tiny"])
    ]
    assert directly == through_daemon


def test_names_of_adapters_reach_run_and_chat(tmp_path: Path) -> None:
    with daemon(tmp_path) as front:
        for model in ("tiny:a", "tiny:base", "other:base"):
            assert cli("run", model, "Hello", state_dir=tmp_path).code == 0
            assert cli("chat", model, state_dir=tmp_path, stdin="hi\n/bye\n").code == 0
        assert cli("run", "tiny:b", state_dir=tmp_path, stdin="piped").code == 0
        names = ["tiny:a", "tiny:base", "other:base"]
        assert front.supervisor.models == [*(name for name in names for _ in "rc"), "tiny:b"]
        for command in (["run", "tiny:nosuch", "Hello"], ["chat", "tiny:nosuch"]):
            done = cli(*command, state_dir=tmp_path)
            assert (done.code, done.out) == (1, "") and "nosuch" in done.err


def test_ps_show_and_status_say_the_active_adapter_and_list_shows_models(tmp_path: Path) -> None:
    with daemon(tmp_path) as front:
        front.supervisor.registry.activate("tiny", "a", force=False, reason="test")
        ps = cli("ps", state_dir=tmp_path).out.splitlines()
        assert ps[0].split()[:2] == ["NAME", "ADAPTER"] and ps[1].split()[:2] == ["tiny", "a"]
        status = cli("status", state_dir=tmp_path).out
        assert [line.split()[1] for line in status.splitlines() if line.startswith("adapter")] == [
            "a"
        ]
        shown = cli("show", "tiny", "--json", state_dir=tmp_path).document()
        listed = cli("list", "--json", state_dir=tmp_path).document()["models"]
    assert shown["adapter"] == "a" and shown["path"] == "models/tiny.gguf"
    assert [model["name"] for model in listed] == ["other", "tiny"]
    assert cli("show", "tiny", "--json", state_dir=tmp_path).document() == shown
    base = cli("show", "tiny:base", "--json", state_dir=tmp_path).document()
    assert (base["name"], base["adapter"]) == ("tiny:base", None)


# ---- completion ----------------------------------------------------------------------------------


def completions(state_dir: Path, *words: str) -> list[str]:
    """What the shell gets for the last word."""
    line = " ".join(["edge-agent", *words])
    done = subprocess.run(
        [sys.executable, "-m", "edge_agent.cli"],
        env={
            **os.environ,
            "EDGE_AGENT_STATE_DIR": str(state_dir),
            "_EDGE_AGENT_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(words)),
        },
        capture_output=True,
        text=True,
    )
    return done.stdout.split()


def test_the_shell_completes_names_of_adapters(state: Path) -> None:
    assert completions(state, "adapters", "activate", "a") == ["a"]
    assert completions(state, "adapters", "activate", "x") == []
