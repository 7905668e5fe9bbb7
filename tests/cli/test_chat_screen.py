"""Saved conversations, the chat over a real front, and the real program on a pseudo-terminal."""

from __future__ import annotations

import io
import json
import math
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeSupervisor
from http_front import Front, serving
from pseudo_terminal import on_a_terminal
from waiting import DEADLINE_S, until

from edge_agent.cli.chat_screen import (
    ChatSession,
    load,
    make_private,
    plain_lines,
    save,
    saved_path,
)
from edge_agent.cli.chat_settings import ChatSettings
from edge_agent.cli.conversation import (
    ChatState,
    Turn,
    answered,
    document,
    from_document,
)
from edge_agent.cli.terminal import Terminal
from edge_agent.client.connection import Client
from edge_agent.errors import ContextExceeded, TemplateError, UsageError, WorkerFailed

ASKED = ChatState(turns=(Turn("user", "one"), Turn("assistant", "1"), Turn("user", "two")))

# ---- saved conversations -----------------------------------------------------------------------


def test_a_saved_conversation_comes_back_as_it_was(tmp_path: Path) -> None:
    settings = ChatSettings(temperature=0.5, seed=3, max_tokens=9, verbose=True)
    asked = ChatState("m", "नमस्ते", settings, ASKED.turns)
    state = answered(asked, "half", cut=True, response_id="chatcmpl-7")
    path = save(state, "monday", tmp_path)
    assert path == tmp_path / "chats" / "monday.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load("monday", tmp_path) == state


def test_a_name_with_a_slash_or_a_suffix_is_a_path(tmp_path: Path) -> None:
    assert saved_path("./x", tmp_path) == Path("x")
    assert saved_path("x.json", tmp_path) == Path("x.json")


def test_a_failed_save_keeps_the_older_file(tmp_path: Path) -> None:
    path = save(ASKED, "monday", tmp_path)
    (tmp_path / "chats" / f".monday.json.{os.getpid()}.tmp").mkdir()
    with pytest.raises(UsageError, match="cannot write"):
        save(ChatState(), "monday", tmp_path)
    assert from_document(json.loads(path.read_text())) == ASKED


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"v": 2}',
        '{"v": 1, "turns": 3}',
        '{"v": 1, "turns": [{"role": "system", "content": "x"}]}',
        '{"v": 1, "turns": [{"role": "user"}]}',
        '{"v": 1, "settings": {"temperature": -1}}',
        '{"v": 1, "settings": {"colour": 1}}',
        '{"v": 1, "system": 1}',
        '{"v": 1, "model": 1}',
        "[" * 100_000,
    ],
)
def test_a_damaged_file_is_reported_and_not_loaded(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UsageError, match=r"cannot load .*x\.json"):
        load(str(tmp_path / "x.json"), tmp_path)


def test_a_conversation_never_saved_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot load"):
        load("nosuch", tmp_path)


def test_a_saved_document_names_its_version() -> None:
    assert document(ASKED)["v"] == 1


def test_the_history_file_is_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "state" / "chat_history"
    assert make_private(path)
    path.chmod(0o644)
    assert make_private(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_no_history_is_kept_where_none_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert not make_private(tmp_path / "file" / "chat_history")


# ---- the session over a real front -------------------------------------------------------------


def chat_with(client: Client, lines: str, state: ChatState | None = None) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a chat whose entries are `lines`."""
    out, err = io.StringIO(), io.StringIO()
    stdin = io.StringIO(lines)
    terminal = Terminal(stdin, out, err, {})
    session = ChatSession(client, terminal, Path("/nonexistent"), plain_lines(stdin), False)
    return session.run(state or ChatState()), out.getvalue(), err.getvalue()


def test_a_pipe_holds_answers_only_and_ends_the_chat(tmp_path: Path) -> None:
    with serving(tmp_path) as front:
        result = chat_with(Client(front.socket_path), '"""one\ntwo"""\n/set top_k 5\n')
        (request,) = front.supervisor.requests
    assert result == (0, "Hello wörld\n", "top_k = 5\n")
    assert request.messages is not None
    assert [turn.content for turn in request.messages] == ["one\ntwo"]
    assert (request.sampling.temperature, request.sampling.repeat_penalty) == (0.3, 1.0)


def test_the_next_question_carries_the_answer_before_it(tmp_path: Path) -> None:
    with serving(tmp_path) as front:
        chat_with(Client(front.socket_path), "one\ntwo\n/regen\n")
        contents = [[m.content for m in r.messages or []] for r in front.supervisor.requests]
    assert contents == [["one"], ["one", "Hello wörld", "two"], ["one", "Hello wörld", "two"]]


def test_a_worker_crash_ends_the_answer_and_not_the_chat(tmp_path: Path) -> None:
    error = WorkerFailed("the worker died", "signal 9", "ask again")
    with serving(tmp_path, FakeSupervisor(error=error, fail_after=2)) as front:
        code, out, err = chat_with(Client(front.socket_path), "one\ntwo\n")
        last = front.supervisor.requests[-1].messages
    assert (code, out) == (0, "Hello \nHello \n")
    assert err.count("error: the worker died: signal 9") == 2
    assert [turn.content for turn in last or []] == ["one", "Hello ", "two"]


def test_a_base_model_says_how_to_use_it(tmp_path: Path) -> None:
    error = TemplateError("tiny has no chat template", "it is a base model")
    with serving(tmp_path, FakeSupervisor(error=error)) as front:
        _, _, err = chat_with(Client(front.socket_path), "one\n", ChatState(model="tiny"))
    assert "edge-agent run --raw tiny" in err


def test_verbose_prints_the_timing_block(tmp_path: Path) -> None:
    with serving(tmp_path) as front:
        _, out, err = chat_with(Client(front.socket_path), "/set verbose on\none\n")
    assert out == "Hello wörld\n"
    assert re.search(r"cached tokens: +4 token", err)
    assert re.search(r"eval rate: +[\d.]+ tokens/s", err)


def test_an_answer_at_the_token_limit_says_so(tmp_path: Path) -> None:
    with serving(tmp_path, FakeSupervisor(finish_reason="length")) as front:
        _, _, err = chat_with(Client(front.socket_path), "/set max_tokens 3\none\n")
    assert "(cut at the token limit; /set max_tokens N raises it)" in err


def feedback_of(front: Front) -> list[Any]:
    return list(front.get("/v1/feedback").json()["feedback"])


def test_answers_are_judged_where_they_were_given(tmp_path: Path) -> None:
    entries = "one\n/good\ntwo\n/correct Two it is.\nthree\n/bad\n"
    with serving(tmp_path) as front:
        code, out, err = chat_with(Client(front.socket_path), entries)
        rows = feedback_of(front)
    assert (code, out) == (0, "Hello wörld\n" * 3)
    assert re.findall(r"kept as feedback (\d)", err) == ["1", "2", "3"]
    said = [(one["messages"][-1]["content"], one["rating"], one["correction"]) for one in rows]
    assert said == [("three", "down", None), ("two", None, "Two it is."), ("one", "up", None)]
    assert {(one["source"], one["user"]) for one in rows} == {("answer", f"uid:{os.getuid()}")}


def test_each_of_two_chats_judges_its_own_answer(tmp_path: Path) -> None:
    with serving(tmp_path) as front:
        client = Client(front.socket_path)
        lines = iter(["mine", "/good"])

        def read_line(prompt: str) -> str:
            line = next(lines, None)
            if line is None:
                raise EOFError
            if line == "/good":
                chat_with(client, "somebody else's\n")
            return line

        terminal = Terminal(io.StringIO(), io.StringIO(), io.StringIO(), {})
        ChatSession(client, terminal, tmp_path, read_line, False).run(ChatState())
        (row,) = feedback_of(front)
    assert row["messages"] == [{"role": "user", "content": "mine"}]


def test_an_answer_of_a_daemon_long_gone_can_still_be_corrected(tmp_path: Path) -> None:
    state = answered(ASKED, "2", response_id="chatcmpl-long-gone")
    with serving(tmp_path) as front:
        chat_with(Client(front.socket_path), "/correct two\n", state)
        (row,) = feedback_of(front)
    assert (row["source"], row["answer"], row["correction"]) == ("given", "2", "two")
    assert [turn["content"] for turn in row["messages"]] == ["one", "1", "two"]


def test_feedback_the_daemon_refuses_does_not_end_the_chat(tmp_path: Path) -> None:
    with serving(tmp_path, feedback=False) as front:
        code, out, err = chat_with(Client(front.socket_path), "one\n/good\ntwo\n")
    assert (code, out) == (0, "Hello wörld\n" * 2)
    assert "this daemon takes no feedback" in err


@pytest.mark.parametrize(
    ("entries", "asked"),
    [
        ('"""one\ntwo', [["one\ntwo"]]),
        ('"""\n\n  one """ two\n"""\nlast', [['  one """ two'], ["last"]]),
        ('what is """ for?\nand more', [['what is """ for?'], ["and more"]]),
        ('/system """Be\nbrief."""\nhi', [["Be\nbrief.", "hi"]]),
        ('\n\r\n"""\n"""\nhi\r\n', [["hi"]]),
        ('"""\none\r\n/bye\r\n"""\r\n', [["one\n/bye"]]),
        ("x" * 20_000, [["x" * 20_000]]),
    ],
)
def test_blocks_and_lines_reach_the_model_whole(
    tmp_path: Path, entries: str, asked: list[list[str]]
) -> None:
    with serving(tmp_path) as front:
        code, out, err = chat_with(Client(front.socket_path), entries)
        turns = [request.messages or [] for request in front.supervisor.requests]
    assert (code, out) == (0, "Hello wörld\n" * len(asked)), err
    said = [[turn.content for turn in one] for one in turns]
    assert [one[:1] + one[-1:] if "Be\nbrief." in one else one[-1:] for one in said] == asked


def test_a_full_context_says_how_to_make_room(tmp_path: Path) -> None:
    error = ContextExceeded("the prompt has 5000 tokens", "a slot holds 4096", "shorten the prompt")
    with serving(tmp_path, FakeSupervisor(error=error)) as front:
        _, _, err = chat_with(Client(front.socket_path), "one\n")
        assert "hint:  shorten the prompt" in err, "there is nothing to forget yet"
        _, _, err = chat_with(Client(front.socket_path), "three\n", answered(ASKED, "2"))
        assert "hint:  /clear forgets the conversation" in err
        front.supervisor.error, front.supervisor.finish_reason = None, "length"
        _, _, err = chat_with(Client(front.socket_path), "one\n")
        assert "the context is full; /clear" in err, "3 of 256 tokens came"
        _, _, err = chat_with(Client(front.socket_path), "/set max_tokens -1\none\n")
        assert "the context is full; /clear" in err
    huge = answered(ChatState(turns=(Turn("user", "x" * 2_000_000),)), "1")
    with serving(tmp_path) as front:
        _, _, err = chat_with(Client(front.socket_path), "two\n", huge)
    assert "the request body is larger" in err and "/clear forgets" in err


# ---- the real program on a real terminal -------------------------------------------------------


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_chat_on_a_terminal_streams_stops_asks_again_and_leaves(tmp_path: Path) -> None:
    supervisor = FakeSupervisor(["slow "] * 9, n_let_pass=3)
    with serving(tmp_path, supervisor) as front, on_a_terminal(tmp_path, "tiny") as (screen, pid):
        screen.wait_for(">>>")
        screen.type("first question\r")
        screen.wait_for("slow slow ")
        screen.type("\x03")
        screen.wait_for("(stopped)")
        until(lambda: supervisor.cancelled == 1)

        screen.wait_for(">>>")
        supervisor.pieces, supervisor.n_let_pass = ["bad\x1b[2Jescape"], math.inf
        screen.type("second\r")
        screen.wait_for("bad[2Jescape")
        contents = [turn.content for turn in supervisor.requests[-1].messages or []]
        assert contents[0] == "first question"
        assert contents[1].startswith("slow slow ")

        screen.wait_for(">>>")
        supervisor.pieces = ["once more"]
        screen.type("/regen\r")
        screen.wait_for("once more")
        assert [turn.content for turn in supervisor.requests[-1].messages or []] == contents

        screen.wait_for(">>>")
        screen.type("\x03")
        screen.wait_for("/bye or Ctrl-D leaves")
        screen.wait_for(">>>")
        screen.type("/bye\r")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert "+second" in (front.settings.state_dir / "chat_history").read_text()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_dumb_terminal_gets_no_escapes_and_a_block_can_be_left(tmp_path: Path) -> None:
    supervisor = FakeSupervisor(["fine"])
    with (
        serving(tmp_path, supervisor),
        on_a_terminal(tmp_path, "tiny", TERM="dumb") as (screen, pid),
    ):
        screen.wait_for("/help lists the commands")
        first, more = ">>> ", "... "
        dropped = [(first, '"""dropped\n'), (more, "more\n"), (more, "\x03")]
        kept = [(first, '"""kept\n'), (more, "all of it\n"), (more, "\x04")]
        for prompt, keys in [*dropped, *kept]:
            screen.wait_for(prompt)
            screen.type(keys)
        screen.wait_for("fine")
        screen.wait_for(first)
        screen.type("\x04")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    (request,) = supervisor.requests
    assert [turn.content for turn in request.messages or []] == ["kept\nall of it"]
    assert "\x1b" not in screen.raw


def test_ctrl_c_leaves_a_chat_that_reads_a_pipe(tmp_path: Path) -> None:
    with serving(tmp_path):
        command = [sys.executable, "-m", "edge_agent.cli", "--state-dir", str(tmp_path), "chat"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(command, text=True, **pipes) as process:  # type: ignore[call-overload]
            process.stdin.write("hello\n")
            process.stdin.flush()
            assert process.stdout.readline() == "Hello wörld\n"
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, err) == (130, "")
