"""Flags, their texts and their bounds come from one declaration; errors name what was written."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cli_runner import cli
from pydantic import ValidationError

from edge_agent.adapt.run_settings import (
    TARGET_MODULES,
    RunSettings,
    declared_run_settings,
    run_settings,
)
from edge_agent.cli.commands.adapt import LessonOptions, _lesson
from edge_agent.cli.commands.chat import chat
from edge_agent.cli.commands.run import SAMPLING
from edge_agent.cli.commands.serve import FLAGS
from edge_agent.cli.conversation import ChatSettings, changed
from edge_agent.config import ENV_PREFIX, Settings, declared_settings, load_settings
from edge_agent.errors import EdgeAgentError, UsageError
from edge_agent.records import Sampling
from edge_agent.sampling_bounds import DEFAULT_MAX_TOKENS, SAMPLING_BOUNDS
from edge_agent.server.adapt import RunBody, _settings
from edge_agent.server.error_body import FieldError
from edge_agent.server.openai_schema import ChatRequest, GenerationFields
from edge_agent.setting import Setting, WrongSetting

HELLO = {"role": "user", "content": "Hello"}
ROOT = Path(__file__).resolve().parents[2]
OF_OTHER_PROGRAMS = {
    "--settings": "python -m edge_agent.daemon",
    "--fd": "python -m edge_agent.engine.worker, python -m edge_agent.adapt.trainer.process",
    "--log-level": "the same two",
    "--merge": "llama-gguf-split",
    "--no-deps": "pip install",
    "--now": "systemctl enable",
    "--nproc-per-node": "torchrun",
    "--si": "ls",
}
"""Flags that our texts name although none of our three programs has them, and whose they are."""
NAMED = re.compile(r"(?<![\w-])--[a-z][a-z-]*[a-z](?![\w-])")


# ---- every flag that a text names exists -------------------------------------------------------


def flags_of_the_programs() -> set[str]:
    """From the left column of docs/cli.md, which a test holds to `--help`."""
    page = (ROOT / "docs" / "cli.md").read_text()
    left = re.findall(r"^  (-.*?)(?:  |$)", page, re.MULTILINE)
    return {flag for text in left for flag in re.findall(r"--[a-z][a-z-]*", text)}


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Every string of a file with its line, docstrings and parts of f-strings included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


@pytest.mark.parametrize("package", ["edge_agent", "converters", "train_host"])
def test_every_flag_that_a_text_names_exists(package: str) -> None:
    known = flags_of_the_programs() | OF_OTHER_PROGRAMS.keys()
    assert {"--memory", "--type", "--qat-type"} <= known, "flags of all three programs"
    unknown = [
        f"{path.relative_to(ROOT)}:{line} names {flag}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for line, text in texts(path)
        for flag in NAMED.findall(text)
        if flag not in known
    ]
    assert unknown == []


# ---- serve: config.Settings --------------------------------------------------------------------


def unwrapped(text: str) -> str:
    return re.sub(r"\s+", "", text)


@pytest.mark.parametrize("name", FLAGS)
def test_help_shows_the_description_and_the_default_of_the_setting(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cli("serve", "--help")
    shown = unwrapped(capsys.readouterr().out)
    setting, default = declared_settings()[name], Settings.model_fields[name].default
    assert unwrapped(str(Settings.model_fields[name].description)) in shown
    assert unwrapped(setting.help) in shown
    if isinstance(default, bool):
        assert f"default: {'' if default else 'no-'}{setting.flag[2:]}" in setting.help
    elif default is not None:
        assert f"default: {str(default).removesuffix('.0')}" in setting.help


BAD = {
    "port": "70000",
    "ctx": "many",
    "slots": "0",
    "threads": "513",
    "n_gpu_layers": "-2",
    "memory_budget_bytes": "lots",
    "max_queue": "4097",
    "keep_alive_s": "soon",
    "crash_budget": "0",
    "power_source": "sun",
    "log_text": "perhaps",
}
"""A value that each setting refuses; of socket, model and sensors_root every text is one."""


def test_each_setting_with_a_flag_has_a_bad_value_unless_it_takes_any_text() -> None:
    assert set(FLAGS) - set(BAD) == {"socket", "model", "sensors_root"}


@pytest.mark.parametrize("name", sorted(BAD.keys() - {"log_text"}))
def test_a_bad_flag_is_named_as_it_was_typed(name: str, tmp_path: Path) -> None:
    setting = declared_settings()[name]
    done = cli("serve", f"{setting.flag}={BAD[name]}", state_dir=tmp_path)
    assert done.code == 2
    what, why = done.err.splitlines()[0].removeprefix("error: ").split(": ", 1)
    assert what == f"{setting.flag} is {BAD[name]}" and why
    assert done.err.splitlines()[1] == f"hint:  {setting.help}"


@pytest.mark.parametrize("name", sorted(BAD))
@pytest.mark.parametrize("place", ["toml", "environment", "environment in small letters"])
def test_a_bad_value_is_named_where_it_was_written(
    name: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = f"`{name}` in {tmp_path / 'config.toml'}"
    if place == "toml":
        (tmp_path / "config.toml").write_text(f'{name} = "{BAD[name]}"\n')
    else:
        variable = ENV_PREFIX + name.upper()
        written = variable if place == "environment" else variable.lower()
        monkeypatch.setenv(written, BAD[name])
    with pytest.raises(UsageError) as refused:
        load_settings({"state_dir": tmp_path})
    assert refused.value.what == f"{written} is {BAD[name]}"
    assert refused.value.why and not refused.value.why.startswith("Value error")
    assert refused.value.hint == declared_settings()[name].help


def test_units_are_understood_in_every_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.toml").write_text('memory_budget_bytes = "512M"\ndrain_s = 3\n')
    monkeypatch.setenv("EDGE_AGENT_GUARD_AVAILABLE_BYTES", "1GiB")
    found = load_settings({"state_dir": tmp_path, "keep_alive_s": "5m"})
    assert (found.memory_budget_bytes, found.guard_available_bytes) == (512_000_000, 1 << 30)
    assert (found.keep_alive_s, found.drain_s) == (300.0, 3.0)


# ---- adapt: messages.RunSettings ---------------------------------------------------------------

RUN_SETTINGS = declared_run_settings()
NUMBERS = [one for one in RUN_SETTINGS.values() if one.schema.get("type") in ("integer", "number")]


def by_flag(setting: Setting, text: str) -> RunSettings:
    options = LessonOptions(source="x.jsonl", name="x", settings={setting.name: text})
    return _lesson(options).settings


def by_http(setting: Setting, value: object) -> RunSettings:
    return _settings(RunBody(name="x", rows="{}", settings={setting.name: value}))


def around(setting: Setting) -> Iterator[tuple[Any, bool]]:
    """Values below, at and above each bound, and whether they are taken."""
    schema, is_whole = setting.schema, setting.schema["type"] == "integer"
    for key, outwards in (("inimum", -1), ("aximum", 1)):
        step = outwards if is_whole else outwards * 1e-6
        if (inside := schema.get(f"m{key}")) is not None:
            yield from ((inside, True), (inside + step, False), (inside - step, True))
        if (outside := schema.get(f"exclusiveM{key}")) is not None:
            yield from ((outside, False), (outside + step, False), (outside - step, True))


def is_taken(make: Any, *given: Any) -> bool:
    try:
        make(*given)
    except (EdgeAgentError, WrongSetting, ValidationError, msgspec.ValidationError):
        return False
    return True


@pytest.mark.parametrize("setting", NUMBERS, ids=lambda one: one.name)
def test_flag_http_and_wire_have_the_bounds_of_the_model(setting: Setting) -> None:
    values = [pair for pair in around(setting) if abs(pair[0]) < 2**63]
    assert values, "every number is bounded"
    for value, is_right in values:
        frame = msgspec.msgpack.encode({setting.name: value})
        answers = {
            "model": is_taken(run_settings, {setting.name: value}),
            "flag": is_taken(by_flag, setting, repr(value)),
            "http": is_taken(by_http, setting, value),
            "wire": is_taken(lambda frame: msgspec.msgpack.decode(frame, type=RunSettings), frame),
        }
        assert set(answers.values()) == {is_right}, f"{setting.name} = {value}: {answers}"


@pytest.mark.parametrize("setting", RUN_SETTINGS.values(), ids=lambda one: one.name)
def test_each_setting_of_a_lesson_has_a_flag_with_its_help(
    setting: Setting, capsys: pytest.CaptureFixture[str]
) -> None:
    cli("adapt", "run", "--help")
    shown = capsys.readouterr().out
    assert f"  {setting.flag} " in shown
    assert unwrapped(setting.help) in unwrapped(shown)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "", "x"])
@pytest.mark.parametrize("setting", NUMBERS, ids=lambda one: one.name)
def test_text_that_is_no_finite_number_is_refused(setting: Setting, value: str) -> None:
    with pytest.raises(UsageError) as refused:
        by_flag(setting, value)
    assert refused.value.what == f"{setting.flag} is {value}"


def test_an_http_error_names_the_field_and_a_flags_error_the_flag() -> None:
    with pytest.raises(FieldError) as refused:
        by_http(RUN_SETTINGS["r"], 513)
    assert refused.value.param == "settings.r" and "512" in refused.value.why
    with pytest.raises(FieldError, match=r"settings\.rank"):
        by_http(Setting("rank", {}), 8)
    with pytest.raises(FieldError, match=r"settings\.r'"):
        by_http(RUN_SETTINGS["r"], "8")
    with pytest.raises(UsageError, match=r"^--lr is 11: "):
        by_flag(RUN_SETTINGS["learning_rate"], "11")
    with pytest.raises(UsageError, match=r"^--target-modules is q_proj,lm_head: "):
        by_flag(RUN_SETTINGS["target_modules"], "q_proj,lm_head")
    assert by_flag(RUN_SETTINGS["memory_bytes"], "400M").memory_bytes == 400_000_000
    done = cli("adapt", "run", "--from", "x", "--name", "x", "--memory", "0")
    assert done.err.startswith("error: --memory is 0: ")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("all-linear", list(TARGET_MODULES)),
        ("q_proj, v_proj ", ["q_proj", "v_proj"]),
        ("self_attn.q_proj,mlp.up_proj,q_proj", ["q_proj", "up_proj"]),
    ],
)
def test_target_modules_are_spelled_as_in_peft(typed: str, meant: list[str]) -> None:
    setting = RUN_SETTINGS["target_modules"]
    assert by_flag(setting, typed).target_modules == meant
    assert by_http(setting, typed.split(",")).target_modules == meant
    assert run_settings({"target_modules": "all-linear"}).target_modules == list(TARGET_MODULES)


@pytest.mark.parametrize(
    ("typed", "why"),
    [
        ("lm_head", "lm_head is no linear layer of a block"),
        ("model.embed_tokens", "is no linear layer of a block"),
        (".*_proj", "is a regular expression"),
        ("(q|v)_proj", "is a regular expression"),
        ("model.layers.3.mlp.up_proj", "is the name of a module of one block"),
        ("query", "there is no linear layer 'query'"),
        ("q_proj,", "there is no linear layer ''"),
        ("mlp.q_proj.x", "there is no linear layer"),
    ],
)
def test_other_spellings_of_target_modules_are_refused_by_name(typed: str, why: str) -> None:
    with pytest.raises(UsageError, match=r"^--target-modules is ") as refused:
        by_flag(RUN_SETTINGS["target_modules"], typed)
    assert why in refused.value.why and "all-linear, q_proj" in refused.value.hint


def test_a_schema_cannot_hide_a_setting_from_the_body() -> None:
    assert set(RunBody.model_json_schema()["properties"]["settings"]["properties"]) == set(
        RunSettings.__struct_fields__
    )
    with pytest.raises(ValidationError):
        RunBody(name="", rows="{}")


# ---- sampling: sampling_bounds -----------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLING_BOUNDS)
def test_flag_chat_and_http_have_the_bounds_of_the_table(name: str) -> None:
    setting, field = SAMPLING_BOUNDS[name], GenerationFields.model_fields[name]
    values = list(around(setting))
    assert len(values) == 6, "two bounds"
    assert field.default is None and field.description == setting.help
    for value, is_right in values:
        assert is_taken(setting.number, repr(value)) == is_right
        assert is_taken(GenerationFields.model_validate, {name: value}) == is_right
        if name in ChatSettings.__dataclass_fields__:
            assert is_taken(changed, ChatSettings(), name, repr(value)) == is_right


@pytest.mark.parametrize("name", SAMPLING)
def test_run_refuses_a_wrong_number_before_it_looks_for_a_daemon(name: str, tmp_path: Path) -> None:
    setting = SAMPLING_BOUNDS[name]
    for text in ("hot", "nan", "-7"):
        done = cli("run", f"{setting.flag}={text}", "hi", state_dir=tmp_path)
        assert done.code == 2
        assert done.err.startswith(f"error: {setting.flag} is {text}: this is ")
        assert setting.help in done.err


def test_the_default_of_each_sampling_setting_is_the_records() -> None:
    for name, setting in SAMPLING_BOUNDS.items():
        assert setting.schema["default"] == getattr(Sampling(), name, DEFAULT_MAX_TOKENS)
    assert ChatRequest.model_validate({"messages": [HELLO]}).token_limit() == DEFAULT_MAX_TOKENS
    told = re.sub(r"\s+", " ", str(chat.__doc__))
    start = "temperature {0.temperature}, top_p {0.top_p} and repeat_penalty {0.repeat_penalty}"
    assert start.format(Sampling()) in told
