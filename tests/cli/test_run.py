"""`edge-agent run`: which argument is what, what goes to which stream, over the real front."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from cli_runner import Outcome, cli, program
from fake_engine import FakeSupervisor, model_row
from http_front import serving

from edge_agent.cli.commands.persona import system_prompt
from edge_agent.cli.commands.run import model_and_prompt, response_format
from edge_agent.errors import TemplateError, UsageError


def is_m(name: str) -> bool:
    return name in ("m", "m:latest")


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
    assert model_and_prompt(given, piped, is_m) == (model, prompt)


@pytest.mark.parametrize(("given", "piped"), [([], None), ([], " \n"), (["m"], None), (["m"], "")])
def test_no_prompt_is_a_usage_error(given: list[str], piped: str | None) -> None:
    with pytest.raises(UsageError, match="no prompt") as caught:
        model_and_prompt(given, piped, is_m)
    assert "edge-agent chat" in caught.value.hint


def test_bytes_that_are_not_utf_8_are_refused() -> None:
    with pytest.raises(UsageError, match="UTF-8"):
        model_and_prompt(["m", b"\xff".decode("utf-8", "surrogateescape")], None, is_m)


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
        *("energy", "temperature"),
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
