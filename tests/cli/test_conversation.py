"""The conversation as values: what each line does to the state and asks the session to do."""

from __future__ import annotations

import pytest

from edge_agent.cli.chat_settings import ChatSettings
from edge_agent.cli.conversation import (
    Ask,
    ChatState,
    Complain,
    Judge,
    Leave,
    LoadChat,
    Save,
    Say,
    Turn,
    answered,
    handle,
    opens_block,
)

ASKED = ChatState(turns=(Turn("user", "one"), Turn("assistant", "1"), Turn("user", "two")))


def test_a_question_is_sent_with_the_persona_and_the_settings() -> None:
    state, actions = handle(ChatState(model="tiny", system="Be brief."), "  hello\n")
    assert actions == (Ask(),)
    assert state.request() == {
        "model": "tiny",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "hello"},
        ],
        "temperature": 0.3,
        "top_p": 0.9,
        "repeat_penalty": 1.0,
    }


def test_settings_nobody_changed_are_left_to_the_daemon() -> None:
    assert "seed" not in ChatState().request()
    state, _ = handle(ChatState(), "/set seed 7")
    assert state.request()["seed"] == 7
    state, _ = handle(state, "/set seed default")
    assert "seed" not in state.request()


@pytest.mark.parametrize("line", ["", "   ", "\n"])
def test_an_empty_line_does_nothing(line: str) -> None:
    assert handle(ChatState(), line) == (ChatState(), ())


@pytest.mark.parametrize("line", ["/etc/fstab what is this?", "/ hm", "a /bye b", "/Users"])
def test_a_line_that_is_no_command_word_is_a_question(line: str) -> None:
    state, actions = handle(ChatState(), line)
    assert actions == (Ask(),)
    assert state.turns == (Turn("user", line),)


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("/Bye", "bye"),
        ("/HELP", "help"),
        ("/regne", "regen"),
        ("/halp", "help"),
        ("/sett top_k 5", "set"),
        ("/q", "quit"),
    ]
    + [("/corect New Delhi", "correct"), ("/help!", "help"), ("/sys", "system")],
)
def test_a_slip_of_a_command_changes_nothing_and_is_put_right(line: str, meant: str) -> None:
    state, (complaint,) = handle(ASKED, line)
    assert state == ASKED
    assert isinstance(complaint, Complain)
    assert complaint.what == f"unknown command {line.split()[0]}"
    assert complaint.hint.startswith(f"did you mean /{meant}? /help lists all")


@pytest.mark.parametrize(
    "name",
    ["bin", "boot", "dev", "etc", "home", "lib", "mnt", "proc", "root", "srv", "sys", "tmp", "usr"],
)
def test_a_directory_is_no_command(name: str) -> None:
    question = f"/{name} is full, what now?"
    assert handle(ASKED, question)[0].turns[-1] == Turn("user", question)


@pytest.mark.parametrize("inside", ["/bye", "  indented\n\nmore", 'a """ b\nc'])
def test_a_block_is_a_question_whatever_it_holds(inside: str) -> None:
    state, actions = handle(ChatState(), f'"""{inside}"""')
    assert (actions, state.turns) == ((Ask(),), (Turn("user", inside),))
    assert handle(ChatState(), '"""\n"""') == (ChatState(), ())


@pytest.mark.parametrize(
    "line",
    ['what does """ mean?', '"""a""" and """b"""', '"""Adds.""" is a docstring?', '/tmp """x'],
)
def test_three_quotes_inside_a_line_are_text(line: str) -> None:
    assert not opens_block(line)
    assert handle(ChatState(), line)[0].turns == (Turn("user", line),)


@pytest.mark.parametrize("line", ["/bye", "/exit", " /quit "])
def test_leaving(line: str) -> None:
    assert handle(ASKED, line) == (ASKED, (Leave(),))


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("temperature", "0", 0.0),
        ("top_p", "1", 1.0),
        ("top-k", "0", 0),
        ("min_p", "0.05", 0.05),
        ("repeat_penalty", "1.1", 1.1),
        ("max_tokens", "12", 12),
        ("verbose", "on", True),
    ],
)
def test_every_setting_can_be_set(key: str, text: str, value: object) -> None:
    state, (said,) = handle(ChatState(), f"/set {key} {text}")
    assert getattr(state.settings, key.replace("-", "_")) == value
    assert isinstance(said, Say)


@pytest.mark.parametrize(
    "line",
    [
        "/set temperature hot",
        "/set temperature nan",
        "/set temperature 1001",
        "/set temperature default",
        "/set temperature",
        "/set top_k 1.5",
        "/set seed -2",
        "/set max_tokens -2",
        "/set verbose maybe",
        "/set colour red",
    ],
)
def test_a_value_that_cannot_be_leaves_the_setting(line: str) -> None:
    state, (complaint,) = handle(ChatState(), line)
    assert state == ChatState()
    assert isinstance(complaint, Complain)
    assert complaint.hint


def test_help_and_show_name_every_setting() -> None:
    for line in ("/help", "/?", "/show", "/set"):
        _, (said,) = handle(ChatState(), line)
        assert isinstance(said, Say)
        for name in ChatSettings.__dataclass_fields__:
            assert name in said.text, line


def test_the_persona_can_be_replaced_over_several_lines() -> None:
    state, _ = handle(ASKED, '/system """Answer in Hindi.\nBe brief."""')
    assert state.system == "Answer in Hindi.\nBe brief."
    assert handle(state, "/system")[1] == (Say("Answer in Hindi.\nBe brief."),)


def test_clear_forgets_the_turns_only() -> None:
    state = ChatState(model="m", system="s", settings=ChatSettings(seed=1), turns=ASKED.turns)
    cleared, _ = handle(state, "/clear")
    assert cleared == ChatState(model="m", system="s", settings=ChatSettings(seed=1))


def test_regen_asks_the_last_question_without_its_answer() -> None:
    state = answered(ASKED, "2, I think", cut=True)
    again, actions = handle(state, "/regen")
    assert (again, actions) == (ASKED, (Ask(),))
    assert isinstance(handle(ChatState(), "/regen")[1][0], Complain)


def test_a_question_that_got_no_answer_is_replaced_by_the_next() -> None:
    state, _ = handle(answered(ASKED, ""), "three")
    assert [turn.content for turn in state.turns] == ["one", "1", "three"]


def test_a_cut_answer_is_kept_and_marked() -> None:
    assert answered(ASKED, "2, I th", cut=True).turns[-1] == Turn("assistant", "2, I th", cut=True)


def test_the_last_answer_is_judged_and_the_conversation_stays() -> None:
    state = answered(ASKED, "2", response_id="chatcmpl-7")
    assert handle(state, "/good") == (state, (Judge("up"),))
    assert handle(state, "/bad") == (state, (Judge("down"),))
    assert handle(state, '/correct """It is\n2."""') == (state, (Judge(correction="It is\n2."),))
    assert handle(state, "/correct  2 ") == (state, (Judge(correction="2"),))


def test_feedback_names_the_answer_and_carries_what_was_said() -> None:
    state = answered(ChatState("tiny", "Be brief.", turns=ASKED.turns), "2", response_id="c-7")
    body = state.feedback(Judge(correction="two"))
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "two"},
    ]
    head = {"id": "c-7", "model": "tiny", "correction": "two"}
    assert body == {**head, "messages": turns, "answer": "2"}
    assert "id" not in answered(ASKED, "2").feedback(Judge("up"))


@pytest.mark.parametrize("line", ["/good", "/bad", "/correct x"])
def test_without_an_answer_there_is_nothing_to_judge(line: str) -> None:
    for state in (ChatState(), ASKED):
        assert isinstance(handle(state, line)[1][0], Complain)


def test_half_an_answer_can_be_corrected_and_not_called_good() -> None:
    state = answered(ASKED, "2, I th", cut=True)
    assert isinstance(handle(state, "/good")[1][0], Complain)
    assert handle(state, "/bad")[1] == (Judge("down"),)
    assert handle(state, "/correct 2")[1] == (Judge(correction="2"),)
    assert isinstance(handle(state, "/correct")[1][0], Complain)


def test_files_are_actions_and_need_a_name() -> None:
    assert handle(ASKED, "/save monday")[1] == (Save("monday"),)
    assert handle(ASKED, "/load a b.json")[1] == (LoadChat("a b.json"),)
    assert isinstance(handle(ASKED, "/save")[1][0], Complain)
