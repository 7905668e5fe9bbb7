"""llama-server's API, /status and /openapi.json."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_engine import N_VOCAB
from http_front import Front, serving

from edge_agent.records import ApplyTemplate, Tokenize
from edge_agent.server.app import API
from edge_agent.server.error_body import dialect_of
from edge_agent.server.llama_server import LlamaServerError, Props, Slots
from edge_agent.server.openapi import document
from edge_agent.server.status import StatusAnswer, proc_bytes


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Front]:
    with serving(tmp_path, model="tiny") as front:
        yield front


def test_health_is_ok_while_a_request_would_be_answered(front: Front) -> None:
    assert front.get("/health").json() == {"status": "ok"}
    front.supervisor.loaded = False
    assert front.get("/v1/health").json() == {"status": "ok"}


@pytest.mark.parametrize("state", ["loading", "restarting"])
def test_health_while_loading_is_llama_servers_503(front: Front, state: str) -> None:
    front.supervisor.become(state)
    answer = front.get("/health")
    assert answer.status == 503
    assert answer.json() == {
        "error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}
    }


def test_health_names_the_reason_of_a_quarantine(front: Front) -> None:
    front.supervisor.become("quarantined", "5 crashes in 60 s, the last by signal 11")
    answer = front.get("/health")
    assert answer.status == 503
    assert "signal 11" in answer.json()["error"]["message"]


def test_monitors_do_not_wake_an_unloaded_model(front: Front) -> None:
    front.supervisor.loaded = False
    props = front.get("/props").json()
    assert Props.model_validate(props).is_sleeping
    assert (props["model_alias"], props["chat_template"]) == ("tiny", "{{ messages }}")
    assert front.get("/slots?fail_on_no_slot=1").json() == []
    assert not front.supervisor.loaded
    assert front.supervisor.asked == []


def test_props_of_a_loaded_model(front: Front) -> None:
    props = front.get("/props").json()
    assert set(props) == set(Props.model_fields)
    assert (props["total_slots"], props["default_generation_settings"]["n_ctx"]) == (2, 4096)


def test_slots_fail_only_when_all_are_busy(front: Front) -> None:
    (slot,) = front.get("/slots?fail_on_no_slot=1").json()
    assert set(slot) == set(Slots.model_fields) and not slot["is_processing"]
    front.supervisor.slot_state = "decode"
    assert front.get("/slots").status == 200
    answer = front.get("/slots?fail_on_no_slot=1")
    assert answer.status == 503
    assert LlamaServerError.model_validate(answer.json())


def test_tokenize_and_detokenize(front: Front) -> None:
    assert front.post("/tokenize", {"content": "ab"}).json() == {"tokens": [97, 98]}
    asked = front.supervisor.asked[0]
    assert isinstance(asked, Tokenize) and asked.parse_special and not asked.add_special
    pieces = front.post("/tokenize", {"content": "é", "with_pieces": True}).json()["tokens"]
    assert pieces == [{"id": 195, "piece": [195]}, {"id": 169, "piece": [169]}]
    assert front.post("/detokenize", {"tokens": [97, 98]}).json() == {"content": "ab"}
    assert front.post("/detokenize", {"tokens": []}).json() == {"content": ""}


@pytest.mark.parametrize("tokens", [[-1], [N_VOCAB], [1.5], ["1"], None, [2**40]])
def test_ids_outside_the_vocabulary_are_400(front: Front, tokens: Any) -> None:
    answer = front.post("/detokenize", {"tokens": tokens})
    assert answer.status == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert front.supervisor.asked == []


def test_apply_template_returns_the_prompt(front: Front) -> None:
    body = {"messages": [{"role": "developer", "content": "s"}, {"role": "user", "content": "u"}]}
    assert front.post("/apply-template", body).json() == {"prompt": "system:s|user:u"}
    assert isinstance(front.supervisor.asked[0], ApplyTemplate)


def test_status_tells_pids_addresses_memory(front: Front, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"port": 4711, "socket": "/s"}))
    status = front.get("/status").json()
    assert StatusAnswer.model_validate(status)
    assert (status["port"], status["socket"]) == (4711, "/s")
    assert status["memory"]["front_rss_anon_bytes"] > 2**20
    assert status["memory"]["worker_rss_anon_bytes"] is None
    assert status["power"]["watts"] is None and status["power"]["reason"]
    assert (status["engine"]["state"], status["model_info"]["name"]) == ("ready", "tiny")


def test_kilobytes_of_a_missing_file_or_field_are_none(tmp_path: Path) -> None:
    (tmp_path / "status").write_text("Name:\tx\nRssAnon:\t  12 kB\n")
    assert proc_bytes(tmp_path / "status", "RssAnon") == 12 * 1024
    assert proc_bytes(tmp_path / "status", "RssFile") is None
    assert proc_bytes(tmp_path / "gone", "RssAnon") is None


def test_openapi_has_every_route_and_resolves_every_reference(front: Front) -> None:
    served = front.get("/openapi.json").json()
    assert served["openapi"] == "3.1.0"
    for route in API:
        operation = served["paths"][route.path][route.method.lower()]
        assert operation["summary"] == route.summary
        assert ("requestBody" in operation) == (route.body is not None)
    references = set(_references(served))
    assert len(references) > 30
    for reference in references:
        name = reference.removeprefix("#/components/schemas/")
        assert name in served["components"]["schemas"], reference


def test_openapi_shows_ranges_and_each_dialects_error() -> None:
    served = json.loads(document(API))
    chat = served["components"]["schemas"]["ChatRequest"]
    temperature, _ = chat["properties"]["temperature"]["anyOf"]
    assert temperature == {"maximum": 1000, "minimum": 0, "type": "number"}
    for path, name in [("/v1/models", "OpenAIError"), ("/api/tags", "OllamaError")]:
        failure = served["paths"][path]["get"]["responses"]["401"]["content"]["application/json"]
        assert failure["schema"]["$ref"].endswith(name)
    assert served["paths"]["/health"]["get"]["security"] == []


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)


def test_unknown_paths_and_methods_are_typed(front: Front) -> None:
    assert front.get("/v2/models").json()["error"]["code"] == "not_found"
    answer = front.call("PUT", "/v1/models")
    assert (answer.status, answer.headers["Allow"]) == (405, "GET,HEAD")
    assert front.get("/api/nope").json()["code"] == "not_found"
    assert dialect_of("/health") == "llama_server"


def test_head_answers_without_a_body(front: Front) -> None:
    answer = front.call("HEAD", "/")
    assert (answer.status, answer.body) == (200, b"")
