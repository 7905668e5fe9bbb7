"""The daemon's own routes for models and the engine, which the command line uses."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_engine import FakeSupervisor
from http_front import serving

MODELS = "/registry/models"


def test_models_are_rows_with_what_answers_them(tmp_path: Path) -> None:
    with serving(tmp_path) as front:
        found = front.get(MODELS).json()["models"]
        one = front.get(f"{MODELS}/tiny:base").json()
    assert [model["name"] for model in found] == ["other", "tiny"]
    assert (one["name"], one["adapter"], one["sha256"]) == ("tiny:base", None, "ab" * 32)


@pytest.mark.parametrize(
    ("name", "code"),
    [("nosuch", "model_not_found"), ("tiny:nosuch", "adapter_not_found"), ("..", None)],
)
def test_a_name_that_is_not_registered_is_refused(
    tmp_path: Path, name: str, code: str | None
) -> None:
    with serving(tmp_path) as front:
        answer = front.get(f"{MODELS}/{name}")
    assert answer.status == 404
    assert code is None or answer.json()["error"]["code"] == code


def test_a_model_is_removed_with_its_file_and_unloaded_first(tmp_path: Path) -> None:
    file = tmp_path / "models" / "tiny.gguf"
    file.parent.mkdir()
    file.write_bytes(b"weights")
    with serving(tmp_path) as front:
        assert front.call("DELETE", f"{MODELS}/tiny:base").status == 400
        assert front.call("DELETE", f"{MODELS}/tiny").status == 200
        assert front.supervisor.unloads == 1 and not file.exists()
        assert front.call("DELETE", f"{MODELS}/tiny").status == 404


def test_unloading_says_what_was_loaded(tmp_path: Path) -> None:
    with serving(tmp_path, FakeSupervisor()) as front:
        assert front.post("/engine/unload", {"model": "other"}).json() == {"model": None}
        assert front.supervisor.unloads == 0
        assert front.post("/engine/unload", {}).json() == {"model": "tiny"}
        assert front.post("/engine/unload", {}).json() == {"model": None}
        assert front.post("/engine/load", {"model": "other"}).json() == {"model": "other"}
        assert front.post("/engine/unload", {"model": "nosuch"}).status == 404


def test_every_route_takes_a_name_with_latest(tmp_path: Path) -> None:
    turns, name = [{"role": "user", "content": "hi"}], "tiny:latest"
    with serving(tmp_path) as front:
        assert front.get(f"{MODELS}/{name}").json()["name"] == "tiny"
        assert front.get(f"/v1/models/{name}").json()["id"] == "tiny"
        for path, body in (
            ("/v1/chat/completions", {"messages": turns}),
            ("/v1/completions", {"prompt": "x"}),
            ("/completion", {"prompt": "x"}),
            ("/api/chat", {"messages": turns, "stream": False}),
            ("/api/generate", {"prompt": "x", "stream": False}),
            ("/api/show", {}),
            ("/tokenize", {"content": "x"}),
            ("/apply-template", {"messages": turns}),
            ("/engine/load", {}),
            ("/engine/unload", {}),
        ):
            assert front.post(path, {"model": name, **body}).json().get("model", "tiny") == "tiny"
        assert {*front.supervisor.models} == {"tiny"}
        assert front.call("DELETE", "/api/delete", {"name": name}).status == 200
        assert front.post("/api/show", {"model": name}).status == 404
