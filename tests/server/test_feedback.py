"""Feedback over HTTP: on remembered answers and on others, by whom, how much, out and in again."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from http_front import Answer, Front, serving
from waiting import until

from edge_agent.adapt import feedback
from edge_agent.adapt.feedback import MAX_IMPORT_ROWS, MAX_ROW_BYTES
from edge_agent.client.connection import Client
from edge_agent.errors import FeedbackNotFound, WorkerFailed
from edge_agent.server import feedback as routes
from edge_agent.server.feedback import MAX_LISTED
from edge_agent.server.service import SERVICE
from edge_agent.store import feedback_table
from edge_agent.store.rows import FeedbackRow

PATH = "/v1/feedback"
HELLO = "Hello wörld"


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Front]:
    with serving(tmp_path, feedback_quota=50, model="tiny") as front:
        yield front


def ask(front: Front, question: str = "Hi", **members: Any) -> Any:
    body = {"messages": [{"role": "user", "content": question}], **members}
    answer = front.post("/v1/chat/completions", body)
    assert answer.status == 200, answer.body
    return answer.events() if members.get("stream") else answer.json()


def correct(front: Front, text: str = "Namaste", **members: Any) -> Answer:
    return front.post(PATH, {"correction": text, **members})


def listed(front: Front, query: str = "") -> Any:
    return front.get(f"{PATH}{query}").json()


def exported(front: Front, query: str = "") -> list[Any]:
    """The lines of an export, without the ids of their rows."""
    lines = front.get(f"{PATH}/export{query}").lines()
    return [{"messages": line["messages"]} for line in lines]


def lesson(question: str = "q", good: str = "A") -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": good}]
    return {"messages": turns}


# ---- on remembered answers ---------------------------------------------------------------------


def test_the_callers_last_answer_is_corrected_and_taught(front: Front) -> None:
    ask(front, "Greet me")
    made = correct(front).json()
    assert (made["answer"], made["correction"], made["rating"]) == (HELLO, "Namaste", None)
    assert (made["user"], made["source"], made["model"]) == ("http", "answer", "tiny")
    assert made["messages"] == [{"role": "user", "content": "Greet me"}]
    assert exported(front) == [lesson("Greet me", "Namaste")]
    assert listed(front)["waiting"] == {"corrections": 1, "approved": 0, "bad": 0}


def test_an_answer_is_meant_by_its_id_streamed_or_whole(front: Front) -> None:
    whole, events = ask(front, "one"), ask(front, "two", stream=True)
    ask(front, "three")
    for response_id, question in ((whole["id"], "one"), (events[0]["id"], "two")):
        made = front.post(PATH, {"id": response_id, "rating": "up"}).json()
        assert (made["messages"][0]["content"], made["rating"]) == (question, "up")
    assert [one["messages"][0]["content"] for one in exported(front)] == ["one", "two"]


def test_ollamas_answers_are_remembered_too(front: Front) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "stream": False}
    assert front.post("/api/chat", body).status == 200
    assert correct(front).json()["messages"] == body["messages"]


def test_a_begun_answer_is_remembered_whole(front: Front) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well: "}]
    for path in ("/v1/chat/completions", "/api/chat"):
        front.post(path, {"model": "tiny", "messages": turns, "stream": False})
        made = correct(front).json()
        assert (made["answer"], made["messages"]) == (f"Well: {HELLO}", turns[:1])


def test_a_bad_answer_is_kept_and_not_taught(front: Front) -> None:
    ask(front)
    assert front.post(PATH, {"rating": "down"}).json()["rating"] == "down"
    assert exported(front) == []
    assert listed(front)["waiting"] == {"corrections": 0, "approved": 0, "bad": 1}


def test_an_answer_at_the_token_limit_can_be_corrected_only(front: Front) -> None:
    front.supervisor.finish_reason = "length"
    ask(front)
    refusal = front.post(PATH, {"rating": "up"})
    assert (refusal.status, refusal.json()["error"]["code"]) == (400, "invalid_request")
    assert "not whole" in refusal.json()["error"]["message"]
    assert correct(front).status == 200


def test_an_answer_the_client_stopped_is_remembered(front: Front) -> None:
    front.supervisor.pieces = ["go "] * 5000
    body = {"messages": [{"role": "user", "content": "run"}], "stream": True}
    with front.send(front.raw_post("/v1/chat/completions", body)) as peer:
        assert peer.recv(4096)
    until(lambda: correct(front, "walk").status == 200)
    (row,) = listed(front)["feedback"]
    assert row["answer"].startswith("go go") and row["messages"][0]["content"] == "run"


def test_a_failed_answer_and_a_raw_completion_are_not_remembered(front: Front) -> None:
    front.post("/v1/completions", {"prompt": "Once"})
    front.supervisor.error = WorkerFailed("the worker died")
    front.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]})
    answer = correct(front)
    assert (answer.status, answer.json()["error"]["code"]) == (404, "feedback_not_found")
    assert "no answer of yours" in answer.json()["error"]["message"]


def test_an_unknown_answer_needs_its_text(front: Front) -> None:
    answer = correct(front, id="chatcmpl-0123")
    assert answer.status == 404
    assert "chatcmpl-0123" in answer.json()["error"]["what"]
    chat = [{"role": "user", "content": "Capital?"}]
    given: dict[str, Any] = {"id": "chatcmpl-0123", "messages": chat, "answer": "Mumbai"}
    made = correct(front, "New Delhi", **given).json()
    assert (made["source"], made["model"], made["answer"]) == ("given", "tiny", "Mumbai")
    answer = correct(front, messages=chat)
    assert (answer.status, answer.json()["error"]["param"]) == (400, "answer")


def test_what_the_daemon_remembers_wins_over_what_is_sent_along(front: Front) -> None:
    response_id = ask(front, "Greet me")["id"]
    forged = [{"role": "user", "content": "forged"}]
    made = correct(front, id=response_id, messages=forged, answer="forged").json()
    assert (made["answer"], made["source"]) == (HELLO, "answer")
    assert made["messages"][0]["content"] == "Greet me"


def test_the_model_of_a_given_answer_is_checked(front: Front) -> None:
    given: dict[str, Any] = {"messages": [{"role": "user", "content": "q"}], "answer": "a"}
    assert correct(front, **given, model="nosuch").status == 404
    assert correct(front, **given, model="../x").status == 404
    assert correct(front, **given, model="other:latest").json()["model"] == "other"
    made = correct(front, **given, model="other:monday").json()
    assert (made["model"], made["adapter"]) == ("other", "monday")


def test_the_adapter_that_answered_is_told(front: Front) -> None:
    registry = front.supervisor.registry
    (front.settings.state_dir / "a").write_text("adapter a")
    registry.add("tiny", "a", front.settings.state_dir / "a", source="trained", settings={})
    registry.set_gate("tiny", "a", {"passed": True}, True)
    registry.activate("tiny", "a", force=False, reason="asked for")
    for model, adapter in (("tiny", "a"), ("tiny:base", None), ("tiny:a", "a")):
        ask(front, f"to {model}", model=model)
        made = correct(front).json()
        assert (made["model"], made["adapter"]) == ("tiny", adapter)
    assert len(listed(front, "?model=tiny:latest")["feedback"]) == 3


def test_nothing_is_on_the_disk_before_somebody_says_something(front: Front) -> None:
    ask(front, "a very private question")
    assert front.store.recent_generations(1)[0].prompt_text is None
    files = [path.read_bytes() for path in front.settings.state_dir.rglob("*") if path.is_file()]
    assert not any(b"private question" in data or HELLO.encode() in data for data in files)
    correct(front)
    files = [path.read_bytes() for path in front.settings.state_dir.rglob("*") if path.is_file()]
    assert any(b"private question" in data for data in files)


def test_it_can_be_switched_off(tmp_path: Path) -> None:
    with serving(tmp_path, feedback=False) as front:
        ask(front)
        given: dict[str, Any] = {"messages": [{"role": "user", "content": "q"}], "answer": "a"}
        for answer in (
            correct(front),
            correct(front, **given),
            front.post(f"{PATH}/import", {"rows": [lesson()]}),
        ):
            assert (answer.status, answer.json()["error"]["code"]) == (403, "feedback_off")
        assert listed(front)["enabled"] is False
        service = front.app[SERVICE]
        assert service.answers.last("http") is None


# ---- who ---------------------------------------------------------------------------------------


def test_each_way_in_has_its_own_last_answer_and_name(front: Front) -> None:
    client = Client(front.socket_path)
    client.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "by socket"}]})
    ask(front, "by token")
    made = client.post(PATH, {"rating": "up"})
    assert made["user"] == f"uid:{os.getuid()}"
    assert made["messages"][0]["content"] == "by socket"
    assert correct(front).json()["messages"][0]["content"] == "by token"


def browser(front: Front) -> dict[str, str]:
    code = front.post("/dashboard/link", {}).json()["url"].partition("#")[2]
    entered = front.post("/dashboard/session", {"code": code}, token=None)
    return {"Cookie": entered.headers["Set-Cookie"].partition(";")[0]}


def test_a_dashboard_session_sees_and_removes_its_own_only(front: Front) -> None:
    (front.settings.state_dir / "run.json").write_text(json.dumps({"port": front.port}))
    cookie = browser(front)
    ask(front, "secret of the operator")
    kept = correct(front).json()
    chat = {"messages": [{"role": "user", "content": "mine"}]}
    assert front.post("/v1/chat/completions", chat, token=None, headers=cookie).status == 200
    mine = front.post(PATH, {"rating": "up"}, token=None, headers=cookie).json()
    assert (mine["user"], mine["messages"]) == ("dashboard", chat["messages"])

    seen = front.get(PATH, token=None, headers=cookie)
    assert [one["id"] for one in seen.json()["feedback"]] == [mine["id"]]
    assert seen.json()["waiting"] == {"corrections": 1, "approved": 1, "bad": 0}
    assert b"secret" not in front.get(f"{PATH}/export", token=None, headers=cookie).body
    assert front.call("DELETE", f"{PATH}/{kept['id']}", token=None, headers=cookie).status == 404
    assert front.call("DELETE", f"{PATH}/{mine['id']}", token=None, headers=cookie).status == 200
    assert [one["id"] for one in listed(front)["feedback"]] == [kept["id"]]


def test_a_made_up_token_beside_a_cookie_makes_nobody_the_operator(front: Front) -> None:
    (front.settings.state_dir / "run.json").write_text(json.dumps({"port": front.port}))
    ask(front)
    correct(front)
    headers = {**browser(front), "Authorization": "Bearer wrong"}
    assert front.get(PATH, token=None, headers=headers).json()["feedback"] == []


@pytest.mark.parametrize("path", [PATH, f"{PATH}/export"])
def test_nobody_without_the_token_reads_it(front: Front, path: str) -> None:
    assert front.get(path, token=None).status == 401


# ---- how much ----------------------------------------------------------------------------------


def test_the_quota_answers_429_and_says_why(tmp_path: Path) -> None:
    with serving(tmp_path, feedback_quota=2, model="tiny") as front:
        for number in range(3):
            ask(front, f"q{number}")
            answer = correct(front)
        error = answer.json()["error"]
        assert (answer.status, error["code"]) == (429, "feedback_quota")
        assert "at most 2" in error["why"] and "feedback rm" in error["hint"]
        assert front.post(f"{PATH}/import", {"rows": [lesson()]}).status == 429
        assert len(listed(front)["feedback"]) == 2
        ask(front, "q0")
        assert correct(front, "again").status == 200


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"rating": "sideways"},
        {"rating": 1},
        {"correction": ""},
        {"correction": "x" * (MAX_ROW_BYTES + 1)},
        {"rating": "up", "correction": "x"},
        {"rating": "up", "messages": []},
        {"rating": "up", "messages": [{"role": "assistant", "content": "x"}], "answer": "y"},
        {"rating": "up", "id": "x" * 65},
        b'{"correction": "a\\u0000b"}',
        b"[]",
    ],
)
def test_what_cannot_be_is_refused_and_not_stored(front: Front, body: Any) -> None:
    ask(front)
    assert front.post(PATH, body).status == 400
    assert listed(front)["feedback"] == []


# ---- out ---------------------------------------------------------------------------------------


def test_pages_lead_to_the_oldest(front: Front) -> None:
    rows = [lesson(f"q{n}") for n in range(5)]
    front.post(f"{PATH}/import", {"rows": rows})
    page = listed(front, "?n=2")
    ids = [one["id"] for one in page["feedback"]]
    while page["next_before"] is not None:
        page = listed(front, f"?n=2&before={page['next_before']}")
        ids += [one["id"] for one in page["feedback"]]
    assert len(ids) == 5 and ids == sorted(ids, reverse=True)
    counted = listed(front, "?n=0")
    assert (counted["feedback"], counted["next_before"]) == ([], None)
    assert counted["waiting"]["approved"] == 5


def test_an_export_holds_the_last_word_also_after_a_lesson(front: Front) -> None:
    """As edge_agent.adapt.feedback.training_rows: what was learned is learned again, unless
    replaced."""
    ask(front, "a"), correct(front, "A")
    ask(front, "b"), correct(front, "B")
    ids = [one["id"] for one in listed(front)["feedback"]]
    front.store.transact(lambda connection: feedback_table.mark_used(connection, ids, "monday"))
    ask(front, "b"), correct(front, "better B")
    ask(front, "a"), front.post(PATH, {"rating": "down"})
    assert exported(front) == [lesson("b", "better B")]
    assert len(listed(front)["feedback"]) == 4


def test_each_line_of_an_export_names_its_row(front: Front) -> None:
    """Two users say the same; whoever learns the lines can tell the rows apart."""
    rows = [
        FeedbackRow(1.0, "tiny", user, "given", '[{"role":"user","content":"q"}]', "A", rating=1)
        for user in ("uid:7", "uid:8")
    ]
    ids = feedback.add(front.store, rows, quota=9)
    lines = front.get(f"{PATH}/export").lines()
    assert lines == [{**lesson(), "id": number} for number in ids]
    assert all(routes.FeedbackLine.model_validate(line, strict=True) for line in lines)


def test_models_are_listed_and_exported_apart(front: Front) -> None:
    front.post(f"{PATH}/import", {"rows": [lesson("a")], "model": "tiny"})
    front.post(f"{PATH}/import", {"rows": [lesson("b")], "model": "other"})
    assert [one["model"] for one in listed(front, "?model=other")["feedback"]] == ["other"]
    assert exported(front, "?model=tiny") == [lesson("a")]
    assert exported(front) == [lesson("a"), lesson("b")]


@pytest.mark.parametrize(
    "query", ["?n=-1", f"?n={MAX_LISTED + 1}", "?n=x", "?n=", "?n=1.5", "?before=x", "?n=٣"]
)
def test_a_page_that_cannot_be_is_refused(front: Front, query: str) -> None:
    answer = front.get(f"{PATH}{query.replace('٣', '%D9%A3')}")
    assert (answer.status, answer.json()["error"]["param"]) == (400, query[1:].partition("=")[0])


def test_removing_is_durable_and_only_once(front: Front) -> None:
    ask(front)
    number = correct(front).json()["id"]
    assert front.call("DELETE", f"{PATH}/{number}").json() == {"removed": number}
    answer = front.call("DELETE", f"{PATH}/{number}")
    assert (answer.status, answer.json()["error"]["code"]) == (404, "feedback_not_found")
    with sqlite3.connect(front.store.path) as connection:
        assert connection.execute("SELECT count(*) FROM feedback").fetchone() == (0,)
    connection.close()
    for wrong in ("x", "-1", "1.0", "9" * 30, "%D9%A3"):
        assert front.call("DELETE", f"{PATH}/{wrong}").status == 400


def test_head_sends_no_body(front: Front) -> None:
    for path in (PATH, f"{PATH}/export"):
        answer = front.call("HEAD", path)
        assert (answer.status, answer.body) == (200, b"")


def test_an_answer_has_the_documented_members(front: Front) -> None:
    ask(front)
    made = correct(front).json()
    assert routes.FeedbackBody.model_validate(made, strict=True).model_dump() == made
    page = listed(front)
    assert routes.FeedbackList.model_validate(page, strict=True).model_dump() == page
    described = front.get("/openapi.json").json()["paths"]
    assert {"get", "post"} == set(described[PATH]) and "delete" in described[f"{PATH}/{{id}}"]


# ---- in again ----------------------------------------------------------------------------------


def test_an_export_goes_in_again_and_longer_than_a_page(front: Front) -> None:
    rows = [lesson(f"q{n}", "ಕನ್ನಡ") for n in range(40)]
    assert front.post(f"{PATH}/import", {"rows": rows}).json() == {"stored": 40}
    assert exported(front) == rows
    assert front.post(f"{PATH}/import", {"rows": exported(front)}).json() == {"stored": 40}
    assert listed(front)["waiting"]["approved"] == 40


@pytest.mark.parametrize(
    "body",
    [
        {"rows": []},
        {"rows": [1]},
        {"rows": [{"instruction": "x", "output": "y"}]},
        {"rows": [lesson(), {"messages": []}]},
        {"rows": [lesson()] * (MAX_IMPORT_ROWS + 1)},
        {"rows": [lesson(good="x" * (MAX_ROW_BYTES + 1))]},
        {},
    ],
)
def test_an_import_is_whole_or_not_at_all(front: Front, body: Any) -> None:
    assert front.post(f"{PATH}/import", body).status == 400
    assert listed(front)["feedback"] == []


def test_a_wrong_row_is_named(front: Front) -> None:
    answer = front.post(f"{PATH}/import", {"rows": [lesson(), {"messages": "x"}]})
    assert answer.json()["error"]["what"].startswith("row 2: ")


def test_a_disk_that_fails_between_pages_cuts_the_connection(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    front.post(f"{PATH}/import", {"rows": [lesson(f"q{n}") for n in range(40)]})
    read = feedback_table.rows_of

    def broken(connection: Any, ids: Any) -> Any:
        if ids[0] == 1:
            return read(connection, ids)
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(feedback_table, "rows_of", broken)
    with pytest.raises(Exception, match="IncompleteRead|RemoteDisconnected|reset|incomplete"):
        front.get(f"{PATH}/export")


def test_the_commands_client_meets_the_typed_error(front: Front) -> None:
    with pytest.raises(FeedbackNotFound, match="no answer of yours"):
        Client(front.socket_path).post(PATH, {"rating": "up"})
