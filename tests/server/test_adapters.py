"""Adapters over HTTP: names in every API, llama-server's lora, and /adapters."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeSupervisor
from http_front import Front, serving
from waiting import DEADLINE_S, until

from edge_agent.errors import WorkerFailed
from edge_agent.records import AdapterRef
from edge_agent.server.adapters import Active, AdapterBody, AdapterList
from edge_agent.server.llama_server import LlamaServerError
from edge_agent.server.lora import LoraAdapter
from edge_agent.server.ollama_schema import OllamaError, RunningModels, ShowAnswer, Tags
from edge_agent.server.openai_answers import ModelList, OpenAIError
from edge_agent.store.store import GenerationRow

TURNS = [{"role": "user", "content": "hi"}]
OFF = AdapterRef(path="", sha256="", scale=0.0)


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Front]:
    """Model tiny has the adapters a and b, both passed, none active; model other has none."""
    with serving(tmp_path, model="tiny") as front:
        for name in "ab":
            add(front, name)
        yield front


def add(front: Front, name: str, *, passed: bool = True) -> None:
    source = front.settings.state_dir / f"source-{name}"
    source.write_text(f"adapter {name}")
    front.supervisor.registry.add("tiny", name, source, source="trained", settings={"r": 8})
    if passed:
        gate = {"passed": True, "reasons": [], "checks": {}, "samples": [{"prompt": "p"}]}
        front.supervisor.registry.set_gate("tiny", name, gate, True)


def activate(front: Front, name: str = "a", **fields: Any) -> Any:
    return front.post("/adapters/activate", {"name": name, **fields})


def rows(front: Front) -> list[GenerationRow]:
    until(lambda: front.store.recent_generations(1))
    return front.store.recent_generations(9)


def id_of(front: Front, name: str) -> int:
    row = front.supervisor.registry.adapter("tiny", name)
    assert row.id is not None
    return row.id


def on_the_socket(front: Front, method: str, path: str, body: Any) -> tuple[int, Any]:
    """One request through the Unix socket."""
    connection = http.client.HTTPConnection("localhost", timeout=DEADLINE_S)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.sock.connect(str(front.socket_path))
    try:
        headers = {"Content-Type": "application/json"}
        connection.request(method, path, json.dumps(body), headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read() or "null")
    finally:
        connection.close()


# ---- names ---------------------------------------------------------------------------------------


def test_every_list_has_the_model_first_then_the_base_and_the_adapters(front: Front) -> None:
    names = ["other", "tiny", "tiny:base", "tiny:a", "tiny:b"]
    models = front.get("/v1/models").json()
    assert [card["id"] for card in ModelList.model_validate(models).model_dump()["data"]] == names
    tags = front.get("/api/tags").json()
    assert [tag["name"] for tag in Tags.model_validate(tags).model_dump()["models"]] == names


def test_each_listed_name_has_its_card(front: Front) -> None:
    for name in ("tiny", "tiny:base", "tiny:a", "other:base"):
        assert front.get(f"/v1/models/{name}").json()["id"] == name
    assert front.get("/v1/models/tiny:latest").json()["id"] == "tiny"
    answer = front.get("/v1/models/tiny:nosuch")
    assert answer.status == 404
    error = OpenAIError.model_validate(answer.json()).error
    assert error.code == "adapter_not_found" and "it has: a, b" in error.message


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": TURNS}),
        ("/v1/completions", {"prompt": "hi"}),
        ("/api/chat", {"messages": TURNS, "stream": False}),
        ("/api/generate", {"prompt": "hi", "stream": False}),
        ("/tokenize", {"content": "hi"}),
        ("/apply-template", {"messages": TURNS}),
    ],
)
def test_an_unknown_adapter_is_404_everywhere_and_names_the_known_ones(
    front: Front, path: str, body: dict[str, Any]
) -> None:
    answer = front.post(path, {**body, "model": "tiny:nosuch"})
    assert answer.status == 404
    assert b"it has: a, b" in answer.body
    for name in ("tiny:", "tiny:a:b", "tiny:../a", "Tiny:a", "tiny:A"):
        assert front.post(path, {**body, "model": name}).status == 404


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat"])
def test_the_answer_and_its_row_say_which_adapter_it_was(front: Front, path: str) -> None:
    activate(front)
    front.supervisor.requests.clear()
    for name in ("tiny", "tiny:latest", "tiny:base", "tiny:b"):
        body = {"messages": TURNS, "model": name, "stream": False}
        assert front.post(path, body).json()["model"] == name.removesuffix(":latest")
    until(lambda: len(front.store.recent_generations(9)) == 4)
    found = [(row.model, row.adapter) for row in reversed(rows(front))]
    assert found == [("tiny", "a"), ("tiny", "a"), ("tiny", None), ("tiny", "b")]


def test_streams_say_the_name_they_were_asked_for(front: Front) -> None:
    body = {"messages": TURNS, "model": "tiny:b", "stream": True}
    events = front.post("/v1/chat/completions", body).events()
    assert {event["model"] for event in events[:-1]} == {"tiny:b"}
    lines = front.post("/api/chat", body).lines()
    assert {line["model"] for line in lines} == {"tiny:b"}


def test_what_is_loaded_says_its_active_adapter(front: Front) -> None:
    front.post("/api/chat", {"model": "tiny", "messages": TURNS, "stream": False})
    running = front.get("/api/ps").json()
    assert RunningModels.model_validate(running).models[0].adapter is None
    assert (
        "edge_agent.adapter" not in front.post("/api/show", {"model": "tiny"}).json()["model_info"]
    )
    activate(front, "b")
    assert front.get("/api/ps").json()["models"][0]["adapter"] == "b"
    assert front.get("/status").json()["engine"]["adapter"] == "b"
    for name, adapter in (("tiny", "b"), ("tiny:a", "a"), ("tiny:base", None)):
        shown = front.post("/api/show", {"model": name}).json()
        assert ShowAnswer.model_validate(shown)
        assert shown["model_info"].get("edge_agent.adapter") == adapter
        assert ("\nADAPTER adapters/tiny/" in shown["modelfile"]) == (adapter is not None)


def test_ollamas_delete_removes_one_adapter_or_all_with_the_model(front: Front) -> None:
    directory = front.settings.state_dir / "adapters" / "tiny"
    answer = front.call("DELETE", "/api/delete", {"model": "tiny:base"})
    assert answer.status == 400
    assert OllamaError.model_validate(answer.json())
    assert front.call("DELETE", "/api/delete", {"model": "tiny:a"}).status == 200
    assert [path.name for path in directory.iterdir()] == ["b.gguf"]
    assert front.call("DELETE", "/api/delete", {"model": "tiny"}).status == 200
    assert list(directory.iterdir()) == []
    assert front.supervisor.registry.adapters() == []


# ---- llama-server --------------------------------------------------------------------------------


def test_lora_adapters_lists_ids_paths_and_scales(front: Front) -> None:
    activate(front, "b")
    listed = front.get("/lora-adapters").json()
    assert [LoraAdapter.model_validate(one) for one in listed]
    root = front.settings.state_dir / "adapters" / "tiny"
    assert listed == [
        {"id": id_of(front, "a"), "path": str(root / "a.gguf"), "scale": 0.0},
        {"id": id_of(front, "b"), "path": str(root / "b.gguf"), "scale": 1.0},
    ]


def test_setting_a_scale_activates_and_setting_none_is_the_base(front: Front) -> None:
    a, b = id_of(front, "a"), id_of(front, "b")
    body = [{"id": a, "scale": 0.5}, {"id": b, "scale": 0}]
    assert front.post("/lora-adapters", body).json() == {"success": True}
    assert [one["scale"] for one in front.get("/lora-adapters").json()] == [0.5, 0.0]
    registry = front.supervisor.registry
    active = registry.active("tiny")
    assert active is not None and registry.reference(active).scale == 0.5
    assert registry.is_proved("tiny")
    assert front.post("/lora-adapters", [{"id": a, "scale": 0.0}]).status == 200
    assert registry.active("tiny") is None
    assert front.post("/lora-adapters", []).status == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"id": 1, "scale": 1}, 400),
        ([{"id": 1}], 400),
        ([{"id": 1, "scale": "1"}], 400),
        ([{"id": 1, "scale": 1e999}], 400),
        ([{"id": 1, "scale": 101}], 400),
        ([{"id": 1, "scale": 1}, {"id": 2, "scale": 1}], 400),
        ([{"id": 99, "scale": 1}], 404),
        ([1], 400),
        (b"[", 400),
        (b"[NaN]", 400),
    ],
)
def test_scales_that_cannot_be_are_llama_servers_error(
    front: Front, body: Any, status: int
) -> None:
    answer = front.post("/lora-adapters", body)
    assert answer.status == status
    assert LlamaServerError.model_validate(answer.json())
    assert front.supervisor.registry.active("tiny") is None


def test_an_adapter_no_gate_let_pass_gets_no_scale(front: Front) -> None:
    add(front, "raw", passed=False)
    answer = front.post("/lora-adapters", [{"id": id_of(front, "raw"), "scale": 1}])
    assert answer.status == 422 and b"no gate has judged it yet" in answer.body


def test_a_request_chooses_an_adapter_and_a_scale_or_the_base(front: Front) -> None:
    activate(front, "b")
    front.supervisor.requests.clear()
    a = id_of(front, "a")
    for lora in ([{"id": a, "scale": 0.5}], [], [{"id": a, "scale": 0}], None):
        body = {"messages": TURNS, "lora": lora, "max_tokens": 3}
        assert front.post("/v1/chat/completions", body).status == 200
    completion = {"prompt": "hi", "lora": [{"id": a, "scale": 2}], "model": "tiny:base"}
    assert front.post("/v1/completions", completion).status == 200
    chosen = [request.adapter for request in front.supervisor.requests]
    row = front.supervisor.registry.adapter("tiny", "a")
    path = str(front.settings.state_dir / row.path)
    scaled = AdapterRef(path, row.sha256, 0.5)
    assert chosen == [scaled, OFF, OFF, None, AdapterRef(path, row.sha256, 2.0)]
    until(lambda: len(front.store.recent_generations(9)) == 5)
    assert [row.adapter for row in rows(front)][:5] == ["a", "b", None, None, "a"]


def test_two_adapters_in_one_request_are_refused_with_the_reason(front: Front) -> None:
    lora = [{"id": id_of(front, name), "scale": 1.0} for name in "ab"]
    answer = front.post("/v1/chat/completions", {"messages": TURNS, "lora": lora})
    assert answer.status == 400
    error = OpenAIError.model_validate(answer.json()).error
    assert error.param == "lora" and "a decode call holds one only" in error.message
    unknown = {"messages": TURNS, "lora": [{"id": 99, "scale": 1.0}]}
    assert front.post("/v1/chat/completions", unknown).status == 404
    assert front.supervisor.requests == []


# ---- /adapters -----------------------------------------------------------------------------------


def test_adapters_are_listed_and_shown_with_what_the_gate_said(front: Front) -> None:
    listed = front.get("/adapters").json()
    assert [one.name for one in AdapterList.model_validate(listed).adapters] == ["a", "b"]
    assert listed["adapters"][0]["gate"] == {"passed": True, "reasons": []}
    assert front.get("/adapters?model=other").json() == {"adapters": []}
    assert front.get("/adapters?model=nosuch").status == 404
    shown = front.get("/adapters/tiny/a").json()
    assert AdapterBody.model_validate(shown)
    assert shown["gate"]["samples"] == [{"prompt": "p"}] and shown["settings"] == {"r": 8}
    assert (shown["is_active"], shown["is_proved"]) == (False, False)
    assert front.get("/adapters/default/a").json() == shown
    assert front.get("/adapters/tiny/nosuch").status == 404
    assert front.get("/adapters/nosuch/a").status == 404


def test_activating_asks_the_worker_and_the_canary(front: Front) -> None:
    answer = activate(front, "a", model="tiny:latest")
    assert Active.model_validate(answer.json()) == Active(model="tiny", active="a")
    (checked,) = front.supervisor.checked
    assert checked.path.endswith("adapters/tiny/a.gguf")
    assert len(front.supervisor.requests) == 2
    shown = front.get("/adapters/tiny/a").json()
    assert (shown["is_active"], shown["is_proved"]) == (True, True)
    assert front.post("/adapters/deactivate", {}).json() == {"model": "tiny", "active": None}
    assert front.post("/adapters/rollback", {"model": "tiny"}).json()["active"] == "a"
    assert front.post("/adapters/rollback", {}).json()["active"] is None
    nothing = front.post("/adapters/rollback", {})
    assert nothing.status == 400 and b"nothing to go back to" in nothing.body


def test_an_activation_whose_canary_dies_is_422_and_rolled_back(front: Front) -> None:
    activate(front, "a")
    front.supervisor.error = WorkerFailed("the worker (pid 7) died", "signal SIGSEGV (11)")
    answer = activate(front, "b")
    assert answer.status == 422
    error = answer.json()["error"]
    assert error["code"] == "adapter_refused" and "SIGSEGV" in error["why"]
    assert error["hint"] == "adapter a answers again"
    assert front.get("/adapters/tiny/b").json()["status"] == "rolled_back"


def test_unjudged_adapters_need_force(front: Front) -> None:
    add(front, "raw", passed=False)
    refused = activate(front, "raw")
    assert refused.status == 422 and b"--force" in refused.body
    assert activate(front, "raw", force=True).json()["active"] == "raw"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/adapters/activate", {}),
        ("/adapters/activate", {"name": 1}),
        ("/adapters/activate", {"name": "a", "force": "yes"}),
        ("/adapters/deactivate", []),
        ("/adapters/rollback", b"{"),
    ],
)
def test_fields_are_checked(front: Front, path: str, body: Any) -> None:
    answer = front.post(path, body)
    assert answer.status == 400
    assert OpenAIError.model_validate(answer.json())


def test_removing_and_exporting(front: Front) -> None:
    exported = front.get("/adapters/tiny/a/file")
    assert exported.headers["Content-Type"] == "application/octet-stream"
    assert exported.body == b"adapter a"
    assert front.call("HEAD", "/adapters/tiny/a/file").body == b""
    assert front.call("DELETE", "/adapters/tiny/a").status == 200
    assert front.get("/adapters/tiny/a/file").status == 404
    activate(front, "b")
    active = front.call("DELETE", "/adapters/tiny/b")
    assert active.status == 400 and b"is active" in active.body
    (front.settings.state_dir / "adapters" / "tiny" / "b.gguf").unlink()
    gone = front.get("/adapters/tiny/b/file")
    assert gone.status == 422 and b"No such file" in gone.body


def test_importing_works_through_the_unix_socket_only(front: Front, tmp_path: Path) -> None:
    file = tmp_path / "new.gguf"
    file.write_bytes(b"new")
    body = {"name": "new", "path": str(file)}
    refused = front.post("/adapters/import", body)
    assert refused.status == 403 and refused.json()["error"]["code"] == "unix_socket_only"
    status, document = on_the_socket(front, "POST", "/adapters/import", body)
    assert status == 200
    found = AdapterBody.model_validate(document)
    assert (found.name, found.source, found.status) == ("new", "imported", "candidate")
    for wrong in ({**body, "path": "new.gguf"}, {**body, "name": "base"}, {"name": "x"}):
        assert on_the_socket(front, "POST", "/adapters/import", wrong)[0] == 400
    missing = {"name": "x", "path": "/nonexistent.gguf"}
    assert on_the_socket(front, "POST", "/adapters/import", missing)[0] == 422
    pipe = {"name": "x", "path": str(front.socket_path)}
    assert on_the_socket(front, "POST", "/adapters/import", pipe)[0] == 422


def test_without_a_model_there_are_no_adapters(tmp_path: Path) -> None:
    with serving(tmp_path, FakeSupervisor(known=())) as front:
        assert front.get("/lora-adapters").json() == []
        assert front.get("/adapters").json() == {"adapters": []}
        assert activate(front, "a").status == 404
