"""`status` and `doctor` say what went wrong last, with a daemon and without."""

from __future__ import annotations

from pathlib import Path

from cli_runner import cli, filled
from http_front import serving

from edge_agent.server.status import StatusAnswer
from edge_agent.store.store import Store

CRASH = ("worker_crashed", "tiny: the worker (pid 7) died\nof signal 11")
LINE = "worker crashed: tiny: the worker (pid 7) died of signal 11"


def test_status_shows_the_last_events_on_one_line_each(tmp_path: Path) -> None:
    with serving(tmp_path) as front:
        assert front.get("/status").json()["events"] == []
        front.store.add_event(*CRASH)
        front.store.add_event("guard", "stage 0 -> 1: 300 MB available")
        document = cli("status", "--json", state_dir=tmp_path).document()
        table = cli("status", state_dir=tmp_path).out
    assert [event["kind"] for event in document["events"]] == ["guard", "worker_crashed"]
    assert document["storage_error"] is None and "last write" not in table
    assert StatusAnswer.model_validate(document)
    assert LINE in table and "guard: stage 0 -> 1" in table


def test_status_says_that_the_last_write_failed(tmp_path: Path) -> None:
    with serving(tmp_path) as front:
        front.store.last_error = "disk I/O error"
        assert "failed: disk I/O error" in cli("status", state_dir=tmp_path).out
        found = cli("doctor", "--json", state_dir=tmp_path)
    checks = {check["name"]: check for check in found.document()["checks"]}
    assert found.code == 1 and checks["database"]["status"] == "fail"
    assert "disk I/O error" in checks["database"]["detail"]


def test_doctor_shows_the_last_events_of_a_daemon(tmp_path: Path) -> None:
    with serving(tmp_path) as front:
        front.store.add_event(*CRASH)
        assert LINE in cli("doctor", state_dir=tmp_path).out


def test_doctor_shows_the_last_events_without_a_daemon(tmp_path: Path) -> None:
    with Store(filled(tmp_path).database) as store:
        store.add_event(*CRASH)
    found = cli("doctor", state_dir=tmp_path)
    assert "last events:\n" in found.out and LINE in found.out
    (event,) = cli("doctor", "--json", state_dir=tmp_path).document()["events"]
    assert (event["kind"], event["detail"]) == CRASH
