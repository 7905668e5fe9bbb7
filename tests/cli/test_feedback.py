"""edge-agent feedback: said through the daemon; listed, removed, moved out and in also without."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from cli_runner import Outcome, cli, filled
from http_front import Front, serving

from edge_agent.adapt import feedback as rules
from edge_agent.cli.commands import feedback
from edge_agent.cli.commands.feedback import MAX_FILE_BYTES, documents_of
from edge_agent.errors import UsageError
from edge_agent.state_dir import StateDir
from edge_agent.store.store import Store

COMMANDS = [info.name for info in feedback.build_group().registered_commands if info.name]
ME = f"uid:{os.getuid()}"


def lesson(question: str = "q", good: str = "A") -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": good}]
    return {"messages": turns}


def jsonl(path: Path, *documents: Any) -> Path:
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in documents))
    return path


def say(front: Front, *argv: str) -> Outcome:
    return cli("feedback", "add", *argv, state_dir=front.settings.state_dir)


def ask(front: Front, question: str) -> Any:
    return cli("run", question, "--json", state_dir=front.settings.state_dir).document()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("feedback", command, "--help").code == 0
    shown = capsys.readouterr().out
    assert f"Usage: edge-agent feedback {command}" in shown
    assert f"Examples:\n    edge-agent feedback {command}" in shown
    assert "--state-dir" in shown and "--json" in shown


def test_alone_it_lists_its_commands() -> None:
    assert all(f"  {command} " in cli("feedback").out for command in COMMANDS)


# ---- add ---------------------------------------------------------------------------------------


def test_the_last_answer_of_this_user_is_corrected(tmp_path: Path) -> None:
    with serving(tmp_path) as front:
        ask(front, "Greet me in Hindi")
        front.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "other"}]})
        done = say(front, "--correct", "नमस्ते")
        document = cli("feedback", "list", "--json", state_dir=tmp_path).document()
    assert (done.code, done.out) == (0, "1: Greet me in Hindi -> corrected: नमस्ते\n")
    assert "1 correction waits to be learned" in done.err and "adapt run" in done.err
    (row,) = document["feedback"]
    assert (row["user"], row["source"], row["answer"]) == (ME, "answer", "Hello wörld")
    assert document["waiting"] == {"corrections": 1, "approved": 0, "bad": 0}


def test_an_answer_is_rated_also_by_its_id(tmp_path: Path) -> None:
    with serving(tmp_path) as front:
        body = {"messages": [{"role": "user", "content": "over http"}]}
        response_id = front.post("/v1/chat/completions", body).json()["id"]
        ask(front, "mine")
        assert say(front, "--up").out == "1: mine -> good: Hello wörld\n"
        assert say(front, "--down", "--id", response_id).out == "2: over http -> bad: Hello wörld\n"
        document = say(front, "--down", "--correct", "Hi", "--json").document()
    assert document["feedback"]["id"] == 3
    assert (document["feedback"]["rating"], document["feedback"]["correction"]) == ("down", "Hi")
    assert document["waiting"] == {"corrections": 1, "approved": 0, "bad": 1}


@pytest.mark.parametrize(
    "argv", [[], ["--up", "--down"], ["--up", "--correct", "x"], ["--correct", " "], ["x"]]
)
def test_feedback_that_says_nothing_clear_is_a_usage_error(argv: list[str], tmp_path: Path) -> None:
    with serving(tmp_path) as front:
        ask(front, "q")
        done = say(front, *argv)
        assert (done.code, done.out) == (2, "")
        assert cli("feedback", "list", "--json", state_dir=tmp_path).document()["feedback"] == []


def test_errors_of_the_daemon_arrive_typed(tmp_path: Path) -> None:
    with serving(tmp_path, feedback_quota=1) as front:
        nothing = say(front, "--up", "--json")
        assert (nothing.code, nothing.document()["error"]["code"]) == (1, "feedback_not_found")
        for question in ("a", "b"):
            ask(front, question)
            done = say(front, "--up")
        assert done.code == 1
        assert f"no more feedback is taken from {ME} on tiny" in done.err
        assert "hint:  learn them with" in done.err


def test_without_a_daemon_nothing_can_be_said_and_nothing_is_made(tmp_path: Path) -> None:
    done = cli("feedback", "add", "--up", state_dir=tmp_path / "none")
    assert (done.code, done.out) == (1, "")
    assert "error: no daemon answers" in done.err and "edge-agent serve" in done.err
    assert not (tmp_path / "none").exists()


# ---- list, rm, export, import: with and without a daemon ---------------------------------------


@pytest.fixture(params=["daemon", "alone"])
def state_dir(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A state directory with the models tiny and twin (other, for the daemon)."""
    if request.param == "daemon":
        with serving(tmp_path, model="tiny"):
            yield tmp_path
    else:
        filled(tmp_path)
        (tmp_path / "config.toml").write_text('model = "tiny"\n')
        yield tmp_path


def test_rows_go_in_are_listed_go_out_and_are_forgotten(state_dir: Path, tmp_path: Path) -> None:
    rows = [lesson(f"question {n}", f"ಉತ್ತರ {n}") for n in range(70)]
    file = jsonl(tmp_path / "rows.jsonl", *rows)
    assert cli("feedback", "import", str(file), state_dir=state_dir).out == "70 rows taken over\n"

    table = cli("feedback", "list", "-n", "2", state_dir=state_dir)
    lines = table.out.splitlines()
    assert len(lines) == 3 and lines[1].startswith("70 ")
    assert f"{ME}  import  question 69  good: ಉತ್ತರ 69  -" in lines[1]
    assert "70 good answers wait to be learned" in table.err
    document = cli("feedback", "list", "-n", "100", "--json", state_dir=state_dir).document()
    assert [one["id"] for one in document["feedback"]] == list(range(70, 0, -1))

    out = tmp_path / "out.jsonl"
    done = cli("feedback", "export", "-o", str(out), state_dir=state_dir)
    assert done.err == f"70 rows written to {out}\n"
    exported = [{**row, "id": number} for number, row in enumerate(rows, 1)]
    assert [json.loads(line) for line in out.read_text().splitlines()] == exported
    assert cli("feedback", "export", state_dir=state_dir).out == out.read_text()

    assert cli("feedback", "rm", "1", "3", state_dir=state_dir).out == "removed 1\nremoved 3\n"
    done = cli("feedback", "rm", "1", "--json", state_dir=state_dir)
    assert (done.code, done.document()["error"]["code"]) == (1, "feedback_not_found")
    kept = cli("feedback", "export", "--json", state_dir=state_dir).document()["rows"]
    assert kept == [exported[1], *exported[3:]]


def test_an_export_has_a_line_for_each_row_to_every_reader(state_dir: Path, tmp_path: Path) -> None:
    rows = [lesson("one\u2028 two\x85", "A\u2029\vB"), lesson("three")]
    file = jsonl(tmp_path / "rows.jsonl", *rows)
    assert cli("feedback", "import", str(file), state_dir=state_dir).out == "2 rows taken over\n"
    exported = cli("feedback", "export", state_dir=state_dir).out.splitlines()
    assert [json.loads(line)["messages"] for line in exported] == [one["messages"] for one in rows]
    assert len(cli("feedback", "list", state_dir=state_dir).out.splitlines()) == 3
    listed = cli("feedback", "list", "--json", state_dir=state_dir).out
    assert len(listed.splitlines()) == listed.count("\n")


def test_models_are_kept_apart_and_must_be_known(state_dir: Path, tmp_path: Path) -> None:
    file = str(jsonl(tmp_path / "rows.jsonl", lesson()))
    assert cli("feedback", "import", file, "--model", "nosuch", state_dir=state_dir).code == 1
    cli("feedback", "import", file, state_dir=state_dir)
    for command in ("list", "export"):
        argv = ("feedback", command, "--json", "--model")
        found = [cli(*argv, name, state_dir=state_dir).document() for name in ("tiny", "other")]
        assert [len(one.get("feedback", one.get("rows"))) for one in found] == [1, 0]


def test_an_import_is_whole_or_not_at_all(state_dir: Path, tmp_path: Path) -> None:
    file = jsonl(tmp_path / "rows.jsonl", lesson(), {"instruction": "x", "output": "y"})
    done = cli("feedback", "import", str(file), state_dir=state_dir)
    assert done.code == 1 and "row 2: " in done.err
    many = jsonl(tmp_path / "many.jsonl", *(lesson(f"q{n}") for n in range(201)))
    done = cli("feedback", "import", str(many), state_dir=state_dir)
    assert done.code == 1 and "at most 200" in done.err
    listed = cli("feedback", "list", state_dir=state_dir)
    assert (listed.code, listed.out) == (0, "")
    assert "no feedback yet" in listed.err


def test_an_import_reads_a_pipe(state_dir: Path) -> None:
    data = json.dumps(lesson()) + "\n\n"
    done = cli("feedback", "import", "-", "--json", state_dir=state_dir, stdin=data)
    assert done.document() == {"stored": 1}


# ---- alone -------------------------------------------------------------------------------------


def test_without_a_daemon_the_configured_quota_counts(tmp_path: Path) -> None:
    filled(tmp_path)
    (tmp_path / "config.toml").write_text('model = "twin"\nfeedback_quota = 2\n')
    file = jsonl(tmp_path / "rows.jsonl", *(lesson(f"q{n}") for n in range(3)))
    done = cli("feedback", "import", str(file), state_dir=tmp_path)
    assert done.code == 1 and "at most 2 pieces" in done.err


def test_which_of_several_models_is_asked(tmp_path: Path) -> None:
    filled(tmp_path)
    file = str(jsonl(tmp_path / "rows.jsonl", lesson()))
    done = cli("feedback", "import", file, state_dir=tmp_path)
    assert done.code == 2 and "registered: tiny, twin" in done.err
    assert "--model" in done.err
    assert cli("feedback", "import", file, "--model", "twin", state_dir=tmp_path).code == 0


def test_what_a_lesson_has_learned_is_shown(tmp_path: Path) -> None:
    state = StateDir(filled(tmp_path).path)
    file = str(jsonl(tmp_path / "rows.jsonl", lesson("a"), lesson("b")))
    cli("feedback", "import", file, "--model", "tiny", state_dir=tmp_path)
    with Store(state.database) as store:
        rules.mark_used(store, [1], "monday")
    table = cli("feedback", "list", state_dir=tmp_path)
    assert [line.split()[-1] for line in table.out.splitlines()[1:]] == ["-", "monday"]
    assert "1 good answer waits" in table.err


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "holds no rows"),
        (b"\n \n", "holds no rows"),
        (b"{}\n{", "line 2"),
        (b"[" * 100_000, "line 1"),
        (b"\xff\xfe", "cannot read"),
        (b"x" * (MAX_FILE_BYTES + 1), "too long"),
        ("ಕ".encode() * (MAX_FILE_BYTES // 3 + 1), "too long"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(data: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(data)
    with pytest.raises(UsageError) as refusal:
        documents_of(tmp_path / "x.jsonl", io.StringIO())
    assert reason in str(refusal.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read .*nosuch"):
        documents_of(tmp_path / "nosuch", io.StringIO())
