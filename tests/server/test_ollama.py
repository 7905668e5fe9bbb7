"""Ollama's API over real sockets: lines, durations, keep_alive, pull, the official client."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ollama
import pytest
from fake_engine import FakeSupervisor, model_info, model_row
from http_front import TOKEN, Front, serving
from waiting import until

from edge_agent.errors import WorkerFailed
from edge_agent.gguf.model_file import read_gguf
from edge_agent.server.ollama_lines import rfc3339
from edge_agent.server.ollama_schema import keep_alive_s

TURNS = [{"role": "user", "content": "hi"}]


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Front]:
    with serving(tmp_path) as front:
        yield front


def test_chat_streams_lines_by_default(front: Front) -> None:
    answer = front.post("/api/chat", {"model": "tiny", "messages": TURNS})
    *pieces, last = answer.lines()
    assert answer.headers["Content-Type"] == "application/x-ndjson"
    assert [line["message"]["content"] for line in pieces] == ["Hel", "lo ", "wörld"]
    assert not any(line["done"] for line in pieces)
    assert (last["done"], last["done_reason"], last["message"]["content"]) == (True, "stop", "")
    assert (last["prompt_eval_count"], last["prompt_eval_duration"]) == (10, 6_000_000)
    assert (last["eval_count"], last["eval_duration"]) == (3, 30_000_000)
    assert last["total_duration"] >= last["load_duration"] >= 0


def test_generate_without_stream_is_one_document(front: Front) -> None:
    body = {"model": "tiny", "prompt": "x", "stream": False}
    answer = front.post("/api/generate", body).json()
    assert (answer["response"], answer["done"]) == ("Hello wörld", True)


def test_generate_is_one_user_turn_unless_raw(front: Front) -> None:
    body = {"model": "tiny", "prompt": "x", "system": "s", "stream": False}
    front.post("/api/generate", body)
    front.post("/api/generate", {**body, "raw": True})
    templated, raw = front.supervisor.requests
    assert [turn.role for turn in templated.messages or []] == ["system", "user"]
    assert (raw.messages, raw.text) == (None, "x")


def test_generate_on_a_base_model_is_raw(tmp_path: Path) -> None:
    supervisor = FakeSupervisor(info=model_info(chat_template="none"))
    with serving(tmp_path, supervisor) as front:
        front.post("/api/generate", {"model": "tiny", "prompt": "x", "stream": False})
    assert supervisor.requests[0].text == "x"


def test_options_reach_the_engine(front: Front) -> None:
    options = {
        "temperature": 0.1,
        "top_k": 5,
        "top_p": 0.5,
        "min_p": 0.2,
        "seed": 3,
        "num_predict": 11,
        "stop": ["a"],
        "repeat_penalty": 1.1,
        "repeat_last_n": -1,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25,
        "num_ctx": 100_000,
        "num_gpu": 99,
    }
    body = {"model": "tiny", "messages": TURNS, "options": options, "format": "json"}
    assert front.post("/api/chat", body).status == 200
    (request,) = front.supervisor.requests
    assert (request.max_tokens, request.stop, request.json_schema) == (11, ["a"], {})
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.1, 5, 0.5)
    assert (sampling.min_p, sampling.seed, sampling.repeat_penalty) == (0.2, 3, 1.1)
    assert (sampling.repeat_last_n, sampling.presence_penalty) == (8192, 0.5)
    assert sampling.frequency_penalty == 0.25


def test_format_schema_is_checked(front: Front) -> None:
    body = {"model": "tiny", "messages": TURNS, "format": {"type": "string", "pattern": "(x)\\1"}}
    answer = front.post("/api/chat", body)
    assert answer.status == 400
    assert answer.json()["code"] == "invalid_schema"


@pytest.mark.parametrize(
    ("given", "seconds"),
    [("5m", 300), ("1h30m", 5400), ("300ms", 0.3), ("-1", -1), ("-1s", -1), (-5, -1), (0, 0)]
    + [("0", 0), (90, 90), (1.5, 1.5), (None, None), ("1.5h", 5400)],
)
def test_keep_alive_is_a_go_duration_or_seconds(given: Any, seconds: float | None) -> None:
    assert keep_alive_s(given) == (None if seconds is None else pytest.approx(seconds))


def test_keep_alive_reaches_the_supervisor(front: Front) -> None:
    front.post("/api/chat", {"model": "tiny", "messages": TURNS, "keep_alive": "5m"})
    assert front.supervisor.keep_alives == [300]


def test_empty_prompt_loads_and_keep_alive_0_unloads(front: Front) -> None:
    front.supervisor.loaded = False
    loaded = front.post("/api/generate", {"model": "tiny"}).json()
    assert (loaded["done_reason"], loaded["response"]) == ("load", "")
    assert front.supervisor.loaded
    unloaded = front.post("/api/chat", {"model": "tiny", "keep_alive": 0}).json()
    assert (unloaded["done_reason"], unloaded["message"]["content"]) == ("unload", "")
    assert not front.supervisor.loaded
    assert front.supervisor.requests == []


def test_unloading_another_model_leaves_the_loaded_one(front: Front) -> None:
    assert front.post("/api/generate", {"model": "other", "keep_alive": 0}).status == 200
    assert front.supervisor.loaded


def test_worker_failing_in_the_stream_is_an_error_line(front: Front) -> None:
    front.supervisor.error = WorkerFailed("the worker died", "signal 11", "ask again")
    front.supervisor.fail_after = 1
    answer = front.post("/api/chat", {"model": "tiny", "messages": TURNS})
    assert answer.lines()[-1]["error"] == "the worker died: signal 11. ask again"


@pytest.mark.parametrize(
    "members",
    [
        {"keep_alive": "soon"},
        {"keep_alive": []},
        {"tools": [{}]},
        {"think": True},
        {"format": "xml"},
        {"options": {"temperature": "x"}},
        {"options": {"num_predict": -3}},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]},
        {"model": ""},
    ],
)
def test_wrong_field_is_400_in_ollamas_shape(front: Front, members: dict[str, Any]) -> None:
    answer = front.post("/api/chat", {"model": "tiny", "messages": TURNS, **members})
    assert answer.status == 400
    assert list(answer.json()) == ["error", "code", "what", "why", "hint"]


GO_BODIES: dict[str, dict[str, Any]] = {
    "/api/generate": {"prompt": "x", "suffix": "", "system": "", "template": "", "format": ""},
    "/api/chat": {"messages": [{"role": "user", "content": "x"}], "format": ""},
    "/api/show": {"system": "", "template": "", "name": ""},
}
"""Beside `model`: what the structs of Ollama's Go package become with nothing but the model set."""


@pytest.mark.parametrize("absent", ["", None])
def test_empty_strings_and_null_mean_that_a_member_is_absent(front: Front, absent: Any) -> None:
    names = ["name", "keep_alive", "options", "think", "logprobs", "images", "context"]
    names += ["tools", "raw", "stream", "top_logprobs"]
    for path, members in GO_BODIES.items():
        emptied = {key: absent if value == "" else value for key, value in members.items()}
        sent = {"model": "tiny", **dict.fromkeys(names, absent), **emptied}
        assert front.post(path, sent).status == 200, path
    assert front.supervisor.requests[-1].json_schema is None
    options = {"temperature": absent, "stop": absent, "num_predict": 3}
    options |= {"penalize_newline": absent, "tfs_z": absent}
    sent = {"model": "tiny", "messages": TURNS, "options": options}
    assert front.post("/api/chat", sent).status == 200
    assert front.supervisor.requests[-1].max_tokens == 3


def test_either_name_is_taken_for_show_and_delete(front: Front) -> None:
    for named in ({"model": "tiny", "name": ""}, {"model": "", "name": "tiny"}, {"name": "tiny"}):
        assert front.post("/api/show", named).status == 200, named
        assert front.call("DELETE", "/api/delete", {**named, "x": ""}).status == 200, named
        front.store.add_model(model_row("tiny", "/models/tiny.gguf"))
    for unnamed in ({}, {"model": ""}, {"model": None, "name": ""}):
        answer = front.post("/api/show", unnamed)
        assert (answer.status, answer.json()["why"]) == (400, "it is missing")


@pytest.mark.parametrize("field", ["suffix", "context", "template", "images"])
def test_what_generate_cannot_do_is_refused_by_name(front: Front, field: str) -> None:
    value: Any = "x" if field in ("suffix", "template") else [1]
    answer = front.post("/api/generate", {"model": "tiny", "prompt": "x", field: value})
    assert answer.status == 400
    assert f"'{field}'" in answer.json()["error"]


def test_lists_describe_the_models(front: Front) -> None:
    (_, tiny) = front.get("/api/tags").json()["models"]
    assert tiny["name"] == tiny["model"] == "tiny"
    assert tiny["details"]["parameter_size"] == "134.52M"
    (running,) = front.get("/api/ps").json()["models"]
    assert (running["size"], running["context_length"]) == (1230, 4096)
    front.supervisor.loaded = False
    assert front.get("/api/ps").json() == {"models": []}
    shown = front.post("/api/show", {"model": "tiny"}).json()
    assert shown["template"] == "{{ messages }}"
    assert shown["model_info"]["llama.context_length"] == 4096
    assert shown["model_info"]["edge_agent.context_length_train"] == 8192
    assert "llama.block_count" not in shown["model_info"]  # the file is gone


@pytest.mark.parametrize("named", [{"model": "tiny"}, {"model": "tiny:latest"}, {"name": "tiny"}])
def test_show_gives_the_shape_that_the_files_header_has(
    front: Front, tmp_path: Path, tiny_model: Path, named: dict[str, str]
) -> None:
    (tmp_path / "models").mkdir()
    shutil.copyfile(tiny_model, tmp_path / "models" / "tiny.gguf")
    facts = front.post("/api/show", named).json()["model_info"]
    header = read_gguf(tiny_model)
    assert facts["llama.block_count"] == header.n_layer
    assert facts["llama.embedding_length"] == header.n_embd
    assert facts["llama.attention.head_count"] == header.n_head
    assert (facts["general.architecture"], facts["llama.context_length"]) == ("llama", 4096)


def test_delete_removes_row_and_own_file(front: Front, tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (models / "tiny.gguf").write_bytes(b"x")
    assert front.call("DELETE", "/api/delete", {"model": "tiny"}).status == 200
    assert front.supervisor.unloads == 1
    assert not (models / "tiny.gguf").exists()
    assert front.call("DELETE", "/api/delete", {"model": "tiny"}).status == 404


def test_delete_leaves_shared_and_foreign_files(front: Front, tmp_path: Path) -> None:
    foreign, shared = tmp_path / "mine.gguf", tmp_path / "models" / "s.gguf"
    shared.parent.mkdir()
    for path in (foreign, shared):
        path.write_bytes(b"x")
    front.store.add_model(model_row("foreign", str(foreign)))
    front.store.add_model(model_row("one", "models/s.gguf"))
    front.store.add_model(model_row("two", "models/s.gguf"))
    for name in ("foreign", "one"):
        assert front.call("DELETE", "/api/delete", {"model": name}).status == 200
    assert foreign.exists() and shared.exists()
    assert front.call("DELETE", "/api/delete", {"model": "two"}).status == 200
    assert not shared.exists()


PULL_CHILD = """
import json, signal, sys
source, _, state_dir = sys.argv[1:4]
say = lambda **line: print(json.dumps(line), flush=True)
if source == "gone":
    say(status="error", code="download_error", what="no such repo", why="404", hint="check it")
    sys.exit(1)
if source == "crash":
    sys.exit(3)
say(status="pulling", completed=5, total=10)
if source == "endless":
    sys.stdin.close(); open(state_dir + "/child", "w").close(); signal.pause()
if source == "late":
    say(status="error", code="download_error", what="lost", why="reset", hint="again")
    sys.exit(1)
row = dict(name=sys.argv[5] if len(sys.argv) > 5 else "pulled", sha256="cd" * 32,
    path="models/p.gguf", size_bytes=1, source=source, architecture="llama", description="",
    n_params=1, n_ctx_train=1, quantization="F32", chat_template=None, added_at=1.0)
say(status="success", model=row)
"""


@pytest.fixture
def puller(tmp_path: Path) -> Iterator[Front]:
    child = tmp_path / "child.py"
    child.write_text(PULL_CHILD)
    with serving(tmp_path, pull_command=(sys.executable, str(child))) as front:
        yield front


def test_pull_relays_progress_and_registers(puller: Front) -> None:
    answer = puller.post("/api/pull", {"model": "hf:o/r"})
    assert answer.lines() == [
        {"status": "pulling", "completed": 5, "total": 10},
        {"status": "success", "model": {"name": "pulled"}},
    ]
    assert puller.store.model("pulled").source == "hf:o/r"


def test_pull_without_stream_and_with_a_name(puller: Front) -> None:
    body = {"model": "hf:o/r", "name": "mine", "stream": False}
    assert puller.post("/api/pull", body).json() == {"status": "success"}
    assert puller.store.model("mine").sha256 == "cd" * 32


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ({"name": "hf:o/r"}, "pulled"),
        ({"model": "", "name": "hf:o/r", "username": "", "password": ""}, "pulled"),
        ({"model": "hf:o/r", "name": "", "username": "", "password": ""}, "pulled"),
        ({"model": "hf:o/r", "name": "hf:o/r"}, "pulled"),
        ({"model": "hf:o/r", "name": "mine"}, "mine"),
    ],
)
def test_pull_knows_its_source_by_either_name(
    puller: Front, body: dict[str, Any], name: str
) -> None:
    assert puller.post("/api/pull", {**body, "stream": False}).json() == {"status": "success"}
    assert puller.store.model(name).source == "hf:o/r"


def test_pull_that_fails_at_once_has_a_status_and_later_a_line(puller: Front) -> None:
    answer = puller.post("/api/pull", {"model": "gone"})
    assert (answer.status, answer.json()["error"]) == (502, "no such repo: 404. check it")
    late = puller.post("/api/pull", {"model": "late"}).lines()[-1]
    assert (late["error"], late["code"]) == ("lost: reset. again", "download_error")
    assert puller.post("/api/pull", {"model": "crash"}).status == 502


def test_pull_ends_with_its_client_and_one_runs_at_a_time(puller: Front, tmp_path: Path) -> None:
    peer = puller.send(puller.raw_post("/api/pull", {"model": "endless"}))
    until((tmp_path / "child").exists)
    assert puller.post("/api/pull", {"model": "hf:o/r"}).status == 429
    peer.close()
    until(lambda: puller.post("/api/pull", {"model": "hf:o/r"}).status == 200)


@pytest.mark.parametrize("source", ["--state-dir=/etc", "-x", "", " x", 5, None])
def test_pull_source_is_never_an_option(puller: Front, source: Any) -> None:
    for member in ("model", "name"):
        assert puller.post("/api/pull", {member: source}).status == 400


def test_official_client_works(front: Front) -> None:
    client = ollama.Client(
        host=f"http://127.0.0.1:{front.port}", headers={"Authorization": f"Bearer {TOKEN}"}
    )
    with client:
        assert client.chat("tiny", messages=TURNS).message.content == "Hello wörld"
        parts = client.generate("tiny", "x", stream=True)
        assert "".join(part.response or "" for part in parts) == "Hello wörld"
        assert [model.model for model in client.list().models] == ["other", "tiny"]
        assert client.ps().models[0].context_length == 4096
        assert client.show("tiny").details is not None
        with pytest.raises(ollama.ResponseError, match="no model"):
            client.chat("none", messages=TURNS)
        client.delete("other")
    assert [row.name for row in front.store.models()] == ["tiny"]


def test_times_are_rfc3339() -> None:
    assert rfc3339(1_700_000_000.25) == "2023-11-14T22:13:20.250000Z"


LINE_ENDS = ["one\u2028", "two\x85three", "\u2029\v\f\r\x1c\x1d\x1e four\n"]


def test_what_ends_a_line_elsewhere_does_not_break_the_official_client(tmp_path: Path) -> None:
    with serving(tmp_path, FakeSupervisor(pieces=LINE_ENDS)) as front:
        client = ollama.Client(
            host=f"http://127.0.0.1:{front.port}", headers={"Authorization": f"Bearer {TOKEN}"}
        )
        with client:
            for logprobs in (False, True):
                chat = client.chat("tiny", messages=TURNS, stream=True, logprobs=logprobs)
                assert "".join(part.message.content or "" for part in chat) == "".join(LINE_ENDS)
            whole = front.post("/api/generate", {"model": "tiny", "prompt": "x", "stream": False})
            assert whole.text().splitlines() == [whole.text()]
            assert whole.json()["response"] == "".join(LINE_ENDS)
