"""The board's past over HTTP: recent points, stored history, benchmark documents in and out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import http_front
import pytest
from fake_sampler import FakeSampler
from http_front import Front, serving

from edge_agent.errors import StoreError
from edge_agent.monitor.board_sampler import BoardSampler
from edge_agent.monitor.telemetry import Telemetry
from edge_agent.server import app as server_app
from edge_agent.server import history
from edge_agent.server.history import MAX_BODY_BYTES, PAGE, TELEMETRY
from edge_agent.store.rows import MAX_DOCUMENT_BYTES, GenerationRow, SampleRow

Wired = tuple[Front, FakeSampler]


def document(number: int = 0, **members: Any) -> dict[str, Any]:
    head = {"v": 1, "run_id": "r1", "model": "tiny", "scenario": "decode", "avg_ts": 0.5 + number}
    return {**head, **members}


@pytest.fixture
def sampler(monkeypatch: pytest.MonkeyPatch) -> FakeSampler:
    """The routes and a Telemetry in every front, whether or not app.py has them already."""
    sampler, build = FakeSampler(), http_front.build_app

    def with_telemetry(*args: Any, **named: Any) -> Any:
        app = build(*args, **named)
        app[TELEMETRY] = Telemetry(args[1], cast(BoardSampler, sampler), lambda: 0)
        return app

    routes = tuple(dict.fromkeys((*server_app.API, *history.ROUTES)))
    monkeypatch.setattr(server_app, "API", routes)
    monkeypatch.setattr(http_front, "build_app", with_telemetry)
    return sampler


@pytest.fixture
def front(tmp_path: Path, sampler: FakeSampler) -> Iterator[Front]:
    with serving(tmp_path, log_text=True) as front:
        yield front


# ---- /telemetry ---------------------------------------------------------------------------------


def test_telemetry_gives_recent_points_and_the_last_generations(
    front: Front, sampler: FakeSampler
) -> None:
    for second in range(5):
        sampler.tell(float(second), (2.0 + second,))
    for number in range(25):
        front.store.add_generation(GenerationRow(float(number), 0.5, "tiny", "x", total_j=1.5))
    answer = front.get("/telemetry?seconds=300").json()
    assert [point["watts"] for point in answer["points"]] == [2.0, 3.0, 4.0, 5.0, 6.0]
    assert answer["points"][0]["celsius"] == 47.25
    assert [row["started_at"] for row in answer["generations"]] == [24.0 - n for n in range(20)]
    assert answer["generations"][0]["total_j"] == 1.5
    assert answer["now"] >= answer["points"][-1]["at"]


def test_the_answer_has_the_documented_members(front: Front, sampler: FakeSampler) -> None:
    sampler.tell(1.0)
    answer = front.get("/telemetry").json()
    checked = history.TelemetryAnswer.model_validate(answer, strict=True)
    assert checked.points[0].model_dump() == answer["points"][0]


def test_prompts_and_answers_are_never_shown(front: Front) -> None:
    body = {"messages": [{"role": "user", "content": "secret question"}]}
    assert front.post("/v1/chat/completions", body).status == 200
    answer = front.get("/telemetry")
    (row,) = answer.json()["generations"]
    assert row["completion_tokens"] == 3
    assert b"secret" not in answer.body and b"_text" not in answer.body


def test_a_longer_stretch_comes_from_the_store_in_few_points(front: Front) -> None:
    now = front.get("/telemetry").json()["now"]
    rows = [SampleRow(now - 10.0 * n, 10.0, watts=3.0) for n in range(8000)]
    front.store.add_samples(rows).result()
    points = front.get("/telemetry?seconds=70000").json()["points"]
    assert 900 < len(points) <= 1001
    assert {point["watts"] for point in points} == {3.0}
    assert points[0]["at"] < points[-1]["at"]
    assert sum(point["span_s"] for point in points) == pytest.approx(70_000, rel=0.01)


@pytest.mark.parametrize("seconds", ["0", "-5", "x", "nan", "inf", "1e12", ""])
def test_a_stretch_that_cannot_be_is_refused(front: Front, seconds: str) -> None:
    answer = front.get(f"/telemetry?seconds={seconds}")
    assert (answer.status, answer.json()["error"]["param"]) == (400, "seconds")


# ---- /benchmarks --------------------------------------------------------------------------------


def test_documents_come_back_as_they_were_sent_newest_first(front: Front) -> None:
    sent = [document(n, trace=[[0.0, None, 45.5]], language="ಕನ್ನಡ") for n in range(3)]
    assert front.get("/benchmarks").json() == {"benchmarks": []}
    assert front.post("/benchmarks", {"benchmarks": sent}).json() == {"stored": 3}
    assert front.get("/benchmarks").json() == {"benchmarks": sent[::-1]}
    assert front.get("/benchmarks?n=1").json() == {"benchmarks": sent[-1:]}
    assert front.store.benchmarks(9) == sent[::-1]


@pytest.mark.parametrize("n", [PAGE - 1, PAGE, PAGE + 1, 3 * PAGE, 1000])
def test_pages_make_one_document(front: Front, n: int) -> None:
    kept = [document(number) for number in range(2 * PAGE + 3)]
    front.store.add_benchmarks(kept).result()
    found = front.get(f"/benchmarks?n={n}").json()["benchmarks"]
    assert found == kept[::-1][:n]


def test_head_sends_no_body(front: Front) -> None:
    front.store.add_benchmarks([document()]).result()
    answer = front.call("HEAD", "/benchmarks")
    assert (answer.status, answer.body) == (200, b"")


def test_a_disk_that_fails_between_pages_cuts_the_connection(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    front.store.add_benchmarks([document(n) for n in range(PAGE + 1)]).result()
    read = front.store.benchmark_rows

    def broken(n: int, before: int | None = None) -> Any:
        if before is None:
            return read(n)
        raise StoreError("the database cannot be read", "EIO")

    monkeypatch.setattr(front.store, "benchmark_rows", broken)
    with pytest.raises((http_front.http.client.HTTPException, ConnectionError)):
        front.get("/benchmarks")
    assert front.get("/benchmarks?n=1").status == 200


@pytest.mark.parametrize(
    ("change", "param"),
    [
        (lambda one: one.pop("v"), "benchmarks.1.v"),
        (lambda one: one.update(v=2), "benchmarks.1.v"),
        (lambda one: one.update(run_id=""), "benchmarks.1.run_id"),
        (lambda one: one.update(run_id=7), "benchmarks.1.run_id"),
        (lambda one: one.update(model="x" * 201), "benchmarks.1.model"),
        (lambda one: one.pop("scenario"), "benchmarks.1.scenario"),
    ],
)
def test_a_wrong_document_is_named_and_none_is_stored(
    front: Front, change: Callable[[dict[str, Any]], object], param: str
) -> None:
    wrong = document(1)
    change(wrong)
    answer = front.post("/benchmarks", {"benchmarks": [document(0), wrong]})
    assert (answer.status, answer.json()["error"]["param"]) == (400, param)
    assert front.store.benchmarks(9) == []


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"benchmarks": []},
        {"benchmarks": {}},
        {"benchmarks": [1]},
        {"benchmarks": [document()], "more": 1},
        {"benchmarks": [document(v=True)]},
        {"benchmarks": [document(notes=["x" * MAX_DOCUMENT_BYTES])]},
        {"benchmarks": [document()] * 300},
        b'{"benchmarks": [{"v": 1, "run_id": "r", "model": "m", "scenario": "s", "x": NaN}]}',
        b"[]",
    ],
)
def test_what_is_no_list_of_documents_is_refused(front: Front, body: Any) -> None:
    assert front.post("/benchmarks", body).status == 400
    assert front.store.benchmarks(9) == []


def test_a_body_above_the_limit_is_refused(front: Front) -> None:
    big = {"benchmarks": [document(notes=["x" * 60_000])] * 20}
    assert len(json.dumps(big)) > MAX_BODY_BYTES
    assert front.post("/benchmarks", big).status == 413


def test_the_largest_allowed_document_is_kept(front: Front) -> None:
    empty = len(json.dumps(document(notes=""), separators=(",", ":")))
    largest = document(notes="x" * (MAX_DOCUMENT_BYTES - empty))
    assert front.post("/benchmarks", {"benchmarks": [largest]}).json() == {"stored": 1}
    assert front.get("/benchmarks").json()["benchmarks"] == [largest]


@pytest.mark.parametrize("path", ["/telemetry", "/benchmarks"])
def test_nobody_without_the_token_reads_it(front: Front, path: str) -> None:
    assert front.get(path, token=None).status == 401


def test_the_openapi_document_describes_all_three(front: Front) -> None:
    described = front.get("/openapi.json").json()
    assert set(described["paths"]["/benchmarks"]) == {"get", "post"}
    parameters = described["paths"]["/telemetry"]["get"]["parameters"]
    assert [parameter["name"] for parameter in parameters] == ["seconds"]
    assert "BenchmarkDocument" in described["components"]["schemas"]
