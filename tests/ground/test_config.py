"""Where a setting comes from, which one wins, and what a wrong one is told."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from edge_agent.config import (
    Settings,
    config_paths,
    load_settings,
    settings_from_json,
    state_dir_from,
)
from edge_agent.errors import UsageError
from edge_agent.records import EngineSettings


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("STATE_DIRECTORY", "EDGE_AGENT_STATE_DIR"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "etc").mkdir()
    monkeypatch.setenv("CONFIGURATION_DIRECTORY", str(tmp_path / "etc"))


@pytest.fixture
def state(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    return tmp_path / "state"


def test_the_state_directory_has_one_order_of_precedence() -> None:
    both = {"EDGE_AGENT_STATE_DIR": "/a", "STATE_DIRECTORY": "/b:/c", "HOME": "/home/u"}
    assert state_dir_from(both) == Path("/a")
    assert state_dir_from({"STATE_DIRECTORY": "/b:/c", "HOME": "/home/u"}) == Path("/b")
    assert state_dir_from({"HOME": "/home/u"}) == Path("/home/u/.local/state/edge-agent")
    assert state_dir_from({"EDGE_AGENT_STATE_DIR": "x", "HOME": "/"}) == Path.cwd() / "x"


def test_flags_beat_environment_beats_state_toml_beats_etc_toml(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "etc" / "config.toml").write_text("slots = 1\nmax_queue = 1\nport = 1\nctx = 1\n")
    (state / "config.toml").write_text("slots = 2\nmax_queue = 2\nport = 2\n")
    monkeypatch.setenv("EDGE_AGENT_SLOTS", "3")
    monkeypatch.setenv("EDGE_AGENT_PORT", "3")
    found = load_settings({"state_dir": state, "slots": 4})
    assert (found.slots, found.port, found.max_queue, found.ctx) == (4, 3, 2, 1)
    assert found.crash_budget == 5, "the default"


def test_a_flag_that_was_not_given_changes_nothing(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGE_AGENT_SLOTS", "3")
    monkeypatch.setenv("EDGE_AGENT_MODEL", "")
    found = load_settings({"state_dir": state, "slots": None, "model": None})
    assert (found.slots, found.model) == (3, None)


def test_the_environment_names_the_state_directory_whose_file_is_read(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (state / "config.toml").write_text("slots = 7\n")
    monkeypatch.setenv("EDGE_AGENT_STATE_DIR", str(state))
    assert load_settings({}).slots == 7
    assert load_settings({}).socket_path == state / "agent.sock"


def test_words_stand_for_values_text_cannot_write(state: Path) -> None:
    (state / "config.toml").write_text('ctx = "max"\nport = "none"\n')
    found = load_settings({"state_dir": state})
    assert (found.ctx, found.port) == (0, None)


def test_engine_settings_carry_every_engine_field(state: Path) -> None:
    found = load_settings(
        {"state_dir": state, "ctx": 512, "slots": 2, "threads": 3, "n_gpu_layers": 4,
         "load_mode": "read", "flash_attn": "off", "type_k": "q8_0", "type_v": "f32",
         "swa_full": True, "memory_budget_bytes": 5}
    )  # fmt: skip
    assert found.engine_settings() == EngineSettings(
        n_ctx=512, slots=2, n_threads=3, flash_attn="off", load_mode="read", type_k="q8_0",
        type_v="f32", swa_full=True, n_gpu_layers=4, memory_budget_bytes=5,
    )  # fmt: skip


def test_json_gives_the_same_settings_even_where_files_disagree(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved = load_settings({"state_dir": state, "port": "none", "slots": 2})
    (state / "config.toml").write_text("port = 5\nmodel = 'x'\n")
    monkeypatch.setenv("EDGE_AGENT_SLOTS", "9")
    assert settings_from_json(resolved.model_dump_json()) == resolved


@pytest.mark.parametrize(
    "text", ["", "[]", "nul", '{"slots": -1}', '{"bogus": 1}', "{}}", "\ud800"]
)
def test_json_that_is_no_settings_is_typed(text: str) -> None:
    with pytest.raises(UsageError):
        settings_from_json(text)


def test_a_misspelt_key_is_named_with_the_file_and_the_likely_one(state: Path) -> None:
    (state / "config.toml").write_text("slotz = 2\n")
    with pytest.raises(UsageError) as refused:
        load_settings({"state_dir": state})
    assert "`slotz`" in refused.value.what and str(state) in refused.value.what
    assert "did you mean `slots`?" in refused.value.hint and "crash_budget" in refused.value.hint


def test_a_file_cannot_move_the_state_directory(state: Path) -> None:
    (state / "config.toml").write_text('state_dir = "/elsewhere"\n')
    with pytest.raises(UsageError, match="cannot move it"):
        load_settings({"state_dir": state})


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("flag", "--crash-budget"),
        ("environment", "EDGE_AGENT_CRASH_BUDGET"),
        ("toml", "config.toml"),
    ],
)
def test_a_bad_value_is_blamed_on_its_source(
    state: Path, monkeypatch: pytest.MonkeyPatch, source: str, named: str
) -> None:
    flags: dict[str, object] = {"state_dir": state}
    if source == "flag":
        flags["crash_budget"] = "0"
    elif source == "environment":
        monkeypatch.setenv("EDGE_AGENT_CRASH_BUDGET", "0")
    else:
        (state / "config.toml").write_text("crash_budget = 0\n")
    with pytest.raises(UsageError) as refused:
        load_settings(flags)
    assert named in refused.value.what and "is 0" in refused.value.what
    assert refused.value.why and "quarantine" in refused.value.hint


@pytest.mark.parametrize(
    "flags",
    [
        {"port": "65536"}, {"port": -1}, {"slots": 0}, {"ctx": -1}, {"type_k": "q2"},
        {"keep_alive_s": "nan"}, {"drain_s": "inf"}, {"load_mode": "magic"}, {"log_text": "maybe"},
        {"host": "0.0.0.0"}, {"bind": "0.0.0.0"},
    ],
)  # fmt: skip
def test_values_and_names_outside_the_table_are_refused(
    state: Path, flags: dict[str, object]
) -> None:
    with pytest.raises(UsageError):
        load_settings({"state_dir": state, **flags})


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"slots = ", b"slots = 1\nslots = 2", b"[" * 5000]
)
def test_a_file_that_is_no_toml_is_typed(state: Path, content: bytes) -> None:
    (state / "config.toml").write_bytes(content)
    with pytest.raises(UsageError, match=r"config\.toml"):
        load_settings({"state_dir": state})


def test_a_directory_in_place_of_the_file_is_typed(state: Path) -> None:
    (state / "config.toml").mkdir()
    with pytest.raises(UsageError, match="cannot read"):
        load_settings({"state_dir": state})


def test_a_hundred_mutated_files_give_settings_or_usage_errors(state: Path) -> None:
    sound = b'slots = 2\nmodel = "tiny"\nkeep_alive_s = 300.5\nlog_text = true\nport = 0\n'
    rng = random.Random(3)
    outcomes = set()
    for _ in range(100):
        mutant = bytearray(sound)
        for _ in range(rng.randint(1, 2)):
            mutant[rng.randrange(len(mutant))] = rng.choice(b'0123456789abz_=" \n\xff')
        (state / "config.toml").write_bytes(mutant)
        try:
            outcomes.add(type(load_settings({"state_dir": state})))
        except UsageError:
            outcomes.add(UsageError)
    assert outcomes == {Settings, UsageError}


def test_every_setting_explains_itself() -> None:
    assert all(field.description for field in Settings.model_fields.values())


def test_the_system_file_is_etc_unless_systemd_says_otherwise(state: Path) -> None:
    assert config_paths(state, {})[1] == Path("/etc/edge-agent/config.toml")
    assert config_paths(state, {"CONFIGURATION_DIRECTORY": "/x:/y"})[1] == Path("/x/config.toml")
