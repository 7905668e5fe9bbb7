"""One rule says which model a command or a request means that names none.

Each case is a command in a situation, through a daemon and without one; the answer is the name of
the model that was meant, `none` where there is no model, or `unclear` where two could be meant.
The second model is the loaded or configured one, so that "the oldest" is never right by chance.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cli_runner import Outcome, cli
from fake_engine import FakeSupervisor, model_info, model_row
from http_front import Front, serving

from edge_agent.adapt.lesson import LessonRequest
from edge_agent.adapt.lesson_runner import LessonRunner
from edge_agent.adapt.messages import Planned
from edge_agent.adapt.pause_policy import PauseConditions
from edge_agent.models.adapter_registry import AdapterRegistry
from edge_agent.server.adapt import ADAPTATION
from edge_agent.store.store import Store

UNCLEAR = {
    "code": "usage_error",
    "what": "it is not clear which model is meant",
    "why": "registered: first, second",
    "hint": "name one of them (MODEL or --model on the command line, `model` in a request), or"
    " choose the default with `edge-agent serve --model NAME`",
}
NONE = {
    "code": "model_not_found",
    "what": "there is no model",
    "why": "none is registered",
    "hint": "register one: `edge-agent pull embedded:smollm2-135m`",
}
REFUSALS = {json.dumps(UNCLEAR): "unclear", json.dumps(NONE): "none"}


@dataclass(frozen=True)
class Situation:
    """`means`: the model that an absent name stands for; `means_surely`: for what removes or
    undoes, which never goes by what is loaded."""

    models: tuple[str, ...]
    means: str
    means_surely: str
    loaded: str | None = None
    is_unloaded: bool = False
    configured: str | None = None


SITUATIONS = {
    "no model": Situation((), "none", "none"),
    "one": Situation(("first",), "first", "first"),
    "two": Situation(("first", "second"), "unclear", "unclear"),
    "two, one loaded": Situation(("first", "second"), "second", "unclear", "second"),
    "two, after an idle unload": Situation(
        ("first", "second"), "second", "unclear", "second", is_unloaded=True
    ),
    "two, one configured": Situation(
        ("first", "second"), "second", "second", loaded="first", configured="second"
    ),
}
WITHOUT_DAEMON = [name for name, one in SITUATIONS.items() if one.configured or not one.loaded]


def planned(request: LessonRequest) -> Planned:
    """A plan whose note tells which model was to be taught."""
    return Planned({}, [], 1, 0, 1, 1, 1, None, {}, [], True, notes=[request.model])


@pytest.fixture(autouse=True)
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any file is an adapter, and a plan is made without a trainer."""
    defaults = AdapterRegistry.__init__.__kwdefaults__
    monkeypatch.setitem(defaults, "check", lambda path, base, sha256: None)

    async def plan(self: LessonRunner, request: LessonRequest) -> Planned:
        return planned(request)

    monkeypatch.setattr(LessonRunner, "plan", plan)


def fill(store: Store, registry: AdapterRegistry, state: Path, models: tuple[str, ...]) -> None:
    """Each model with two adapters, the first of them active; a file holds its model's name."""
    for model in models:
        for name in ("lesson", "spare"):
            path = state / f"{model}-{name}"
            path.write_text(model)
            registry.add(model, name, path, source="trained")
        registry.activate(model, "lesson", force=True, reason="test")
    (state / "new.gguf").write_text("new")
    (state / "rows.jsonl").write_text(json.dumps(ROW))


ROW = {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}


@contextmanager
def daemon(state: Path, situation: Situation) -> Iterator[Front]:
    supervisor = FakeSupervisor(known=situation.models)
    supervisor.info = model_info(situation.loaded or "nothing")
    supervisor.has_loaded = situation.loaded is not None
    supervisor.loaded = supervisor.has_loaded and not situation.is_unloaded
    with serving(state, supervisor, model=situation.configured) as front:
        fill(front.store, supervisor.registry, state, situation.models)
        conditions = PauseConditions(front.settings)
        front.app._state[ADAPTATION] = LessonRunner(
            front.store, supervisor, conditions, state, {}  # type: ignore[arg-type]
        )  # fmt: skip
        yield front


def without_daemon(state: Path, situation: Situation) -> None:
    with Store(state / "edge-agent.db") as store:
        for model in situation.models:
            store.add_model(model_row(model))
        fill(store, AdapterRegistry(store, state), state, situation.models)
    if situation.configured:
        (state / "config.toml").write_text(f'model = "{situation.configured}"\n')


def said(error: dict[str, Any]) -> str:
    """`none` or `unclear` for the one refusal of each kind; else the error as it is."""
    parts = {key: error[key] for key in UNCLEAR}
    return REFUSALS.get(json.dumps(parts), str(parts))


# ---- commands -----------------------------------------------------------------------------------

Reader = Callable[[Path, Outcome], str]
"""The model that a command that succeeded was about."""


def told(state: Path, done: Outcome) -> str:
    return str(done.document()["model"])


def noted(state: Path, done: Outcome) -> str:
    return str(done.document()["notes"][0])


def exported(state: Path, done: Outcome) -> str:
    return (state / "out.gguf").read_text()


def lost(state: Path, done: Outcome) -> str:
    found = cli("adapters", "list", "--json", state_dir=state).document()["adapters"]
    models = [one["model"] for one in found]
    return next(model for model in models if models.count(model) == 1)


def given(state: Path, done: Outcome) -> str:
    rows = cli("feedback", "list", "--json", state_dir=state).document()["feedback"]
    return str(rows[0]["model"])


COMMANDS: dict[str, Reader] = {
    "adapters show lesson": told,
    "adapters activate spare --force": told,
    "adapters deactivate": told,
    "adapters import new.gguf --name new": told,
    "adapters export lesson -o out.gguf": exported,
    "adapt plan --from rows.jsonl --name plan": noted,
}
SURE_COMMANDS: dict[str, Reader] = {
    "adapters rollback": told,
    "adapters rm spare": lost,
    "feedback import rows.jsonl": given,
}


def meant_by(command: str, read: Reader, state: Path) -> str:
    words = [str(state / word) if "." in word else word for word in command.split()]
    done = cli(*words, "--json", state_dir=state)
    return read(state, done) if done.code == 0 else said(done.document()["error"])


@pytest.mark.parametrize("name", SITUATIONS)
@pytest.mark.parametrize("command", COMMANDS | SURE_COMMANDS)
def test_a_command_means_the_same_model_as_every_other(
    command: str, name: str, tmp_path: Path
) -> None:
    situation = SITUATIONS[name]
    wanted = situation.means_surely if command in SURE_COMMANDS else situation.means
    read = (COMMANDS | SURE_COMMANDS)[command]
    with daemon(tmp_path, situation):
        assert meant_by(command, read, tmp_path) == wanted
    if name in WITHOUT_DAEMON:
        apart = tmp_path / "apart"
        apart.mkdir()
        without_daemon(apart, situation)
        assert meant_by(command, read, apart) == wanted


@pytest.mark.parametrize("name", ["default", ""])
def test_default_and_the_empty_name_count_as_none(name: str, tmp_path: Path) -> None:
    words = ("adapters", "show", "lesson", "--model", name, "--json")
    with daemon(tmp_path, SITUATIONS["two"]):
        assert said(cli(*words, state_dir=tmp_path).document()["error"]) == "unclear"
    assert said(cli(*words, state_dir=tmp_path).document()["error"]) == "unclear"


@pytest.mark.parametrize("words", ["adapters list", "feedback list", "feedback export"])
def test_lists_without_a_name_are_of_every_model(words: str, tmp_path: Path) -> None:
    def models() -> set[str]:
        document = cli(*words.split(), "--json", state_dir=tmp_path).document()
        rows = document.get("adapters") or document.get("feedback") or document["rows"]
        return {one.get("model") or one["messages"][0]["content"] for one in rows}

    with daemon(tmp_path, SITUATIONS["two, one loaded"]) as front:
        for model in ("first", "second"):
            turns = [{**ROW["messages"][0], "content": model}, ROW["messages"][1]]
            body = {"model": model, "rows": [{"messages": turns}]}
            assert front.post("/v1/feedback/import", body).status == 200
        assert models() == {"first", "second"}
    assert models() == {"first", "second"}


# ---- requests -----------------------------------------------------------------------------------

CHAT = [{"role": "user", "content": "Q"}]
REQUESTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": CHAT},
    "/v1/completions": {"prompt": "Q"},
    "/v1/feedback": {"messages": CHAT, "answer": "A", "rating": "up"},
    "/adapters/deactivate": {},
    "/adapters/activate": {"name": "spare", "force": True},
    "/adapt/plan": {"name": "plan", "rows": json.dumps(ROW)},
}
SURE_REQUESTS: dict[str, dict[str, Any]] = {"/adapters/rollback": {}}
LLAMA_SERVER = {"/tokenize": {"content": "Q"}, "/apply-template": {"messages": CHAT}}


@pytest.mark.parametrize("absent", [{}, {"model": ""}, {"model": "default"}, {"model": None}])
@pytest.mark.parametrize("name", SITUATIONS)
def test_a_request_means_the_same_model_as_every_command(
    name: str, absent: dict[str, Any], tmp_path: Path
) -> None:
    situation = SITUATIONS[name]
    for path, body in (REQUESTS | SURE_REQUESTS).items():
        wanted = situation.means_surely if path in SURE_REQUESTS else situation.means
        state = tmp_path / path.replace("/", "_")
        state.mkdir()
        with daemon(state, situation) as front:
            answer = front.post(path, {**body, **absent}).json()
        if "error" in answer:
            assert (path, said(answer["error"])) == (path, wanted)
        else:
            assert (path, answer.get("model") or answer["notes"][0]) == (path, wanted)


@pytest.mark.parametrize("name", SITUATIONS)
def test_routes_of_llama_server_follow_the_rule(name: str, tmp_path: Path) -> None:
    situation = SITUATIONS[name]
    with daemon(tmp_path, situation) as front:
        for path, body in LLAMA_SERVER.items():
            answer = front.post(path, body).json()
            message = (answer.get("error") or {}).get("message", "")
            assert (path, "no model" in message) == (path, situation.means == "none")
            assert (path, "not clear which" in message) == (path, situation.means == "unclear")
        scales = front.get("/lora-adapters").json()
        assert ("error" in scales) == (situation.means == "unclear")


def test_ollamas_api_asks_for_a_name_as_ollama_does(tmp_path: Path) -> None:
    with daemon(tmp_path, SITUATIONS["two, one loaded"]) as front:
        for path in ("/api/chat", "/api/generate"):
            answer = front.post(path, {"messages": CHAT} if "chat" in path else {"prompt": "Q"})
            assert answer.status == 400 and "model" in answer.json()["error"]


@pytest.mark.parametrize("name", SITUATIONS)
def test_run_asks_the_model_that_every_command_means(name: str, tmp_path: Path) -> None:
    with daemon(tmp_path, SITUATIONS[name]):
        assert meant_by("run Hello", told, tmp_path) == SITUATIONS[name].means


def test_without_a_daemon_run_says_that_none_answers(tmp_path: Path) -> None:
    without_daemon(tmp_path, SITUATIONS["one"])
    done = cli("run", "Hello", "--json", state_dir=tmp_path)
    assert done.document()["error"]["code"] == "daemon_not_running"
