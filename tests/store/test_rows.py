"""Rows say what was measured, merging invents nothing, and no wrong benchmark document passes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edge_agent.errors import RequestError
from edge_agent.store.rows import (
    MAX_DOCUMENT_BYTES,
    MERGED_BY,
    SampleRow,
    benchmark_row,
    merged,
)

DOCUMENT: dict[str, Any] = {"v": 1, "run_id": "r", "model": "tiny", "scenario": "chat"}


def test_merging_keeps_extremes_and_weights_means_by_time() -> None:
    short = SampleRow(10.0, 10.0, watts=2.0, peak_w=9.0, celsius=40.0, mem_available_bytes=500)
    long = SampleRow(40.0, 30.0, watts=4.0, peak_w=5.0, celsius=50.0, mem_available_bytes=400)
    one = merged([short, long])
    assert (one.at, one.span_s) == (40.0, 40.0)
    assert (one.watts, one.peak_w, one.celsius, one.mem_available_bytes) == (3.5, 9.0, 50.0, 400)


def test_what_nobody_measured_stays_unknown_and_does_not_dilute() -> None:
    one = merged([SampleRow(1.0, watts=None), SampleRow(2.0, watts=6.0)])
    assert (one.watts, one.cpu_load, one.tok_s) == (6.0, None, None)


def test_alarms_are_joined_once_each() -> None:
    rows = [SampleRow(float(n), throttle=text) for n, text in enumerate(["b,a", "", "a,c"])]
    assert merged(rows).throttle == "a,b,c"


def test_every_figure_has_a_rule() -> None:
    figures = set(SampleRow.__dataclass_fields__) - {"at", "span_s", "throttle"}
    assert set(MERGED_BY) == figures


@pytest.mark.parametrize(
    ("members", "complaint"),
    [
        ({"v": 2}, "v is 2"),
        ({"v": True}, "v is True"),
        ({"v": None}, "v is None"),
        ({"run_id": ""}, "run_id is ''"),
        ({"run_id": 5}, "run_id is 5"),
        ({"model": "x" * 201}, "model is"),
        ({"scenario": None}, "scenario is None"),
        ({"avg_ts": float("nan")}, "not JSON"),
        ({"notes": object()}, "not JSON"),
        ({"notes": "\ud800"}, "not JSON"),
        ({"notes": ["x" * MAX_DOCUMENT_BYTES]}, "bytes"),
    ],
)
def test_a_document_that_cannot_be_kept_is_refused(members: dict[str, Any], complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint):
        benchmark_row({**DOCUMENT, **members}, 1.0)


def test_a_document_is_kept_whole() -> None:
    document = {**DOCUMENT, "trace": [[0.0, None, 45.5]], "language": "ಕನ್ನಡ"}
    row = benchmark_row(document, 7.0)
    assert json.loads(row.document) == document
    assert (row.at, row.run_id, row.model, row.scenario) == (7.0, "r", "tiny", "chat")
