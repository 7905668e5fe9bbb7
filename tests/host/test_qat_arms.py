"""The benchmark of llama.cpp's #13485: what is done is skipped, figures are what they say."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

import issue_13485
from issue_13485 import Bench, jobs
from quantized_arms import mean_kl
from quantized_results import TYPES, WAYS, Result, recovery, summary


def result(way: str, name: str, seed: int, loss: float, served: float | None = None) -> Result:
    more: dict[str, Any] = dict.fromkeys(("kl", "served_kl", "floor_kl"), None)
    return Result(
        model="twin", type=name, seed=seed, way=way, loss=loss, bits_per_byte=loss / 2,
        served_loss=served, served_bits_per_byte=None, train_s=1.0, **more,
    )  # fmt: skip


def test_every_way_is_written_by_exactly_one_job() -> None:
    written = [key for job in jobs(2) for key in job.results]
    assert len(written) == len(set(written))
    assert {way for way, _, _ in written} == set(WAYS) - {"base"}
    quantized = [key for key in written if key[1] != "F32"]
    assert len(quantized) == 2 * len(TYPES) * 9
    assert [job.seed for job in jobs(2)] == [1] * 6 + [2] * 6


def test_recovery_is_the_share_of_the_loss_that_quantizing_costs() -> None:
    found = [
        result("full-f32", "F32", 1, 1.0),
        result("full", "Q4_0", 1, 2.0, 3.0),
        result("d", "Q4_0", 1, 1.25, 1.5),
        result("d", TYPES[1], 1, 1.5, 1.5),  # without its counterpart: left out
    ]
    assert recovery(found) == {"Q4_0": {"weights": 0.75, "served": 0.75, "n": 1}}


def test_the_table_has_means_over_seeds() -> None:
    rows = summary([result("a", "Q4_0", 1, 1.0), result("a", "Q4_0", 2, 2.0)])
    assert [(row["way"], row["n"], row["loss"], row["kl"]) for row in rows] == [("a", 2, 1.5, None)]
    assert rows[0]["loss_sd"] == pytest.approx(0.5**0.5)


def test_jobs_in_the_file_are_skipped_and_none_starts_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench.__new__(Bench)
    bench.twin, bench.work, bench.results_path = Path("twin"), tmp_path, tmp_path / "twin.jsonl"
    ran: list[str] = []

    class FakeRun:
        def __init__(self, bench: Bench, job: issue_13485.Job, scratch: Path) -> None:
            self.job = job

        def found(self) -> list[Result]:
            ran.append(f"{self.job.training} {self.job.type} {self.job.seed}")
            return [result(way, name, seed, 1.0) for way, name, seed in self.job.results]

    monkeypatch.setattr(issue_13485, "Run", FakeRun)
    bench.add([result("base", name, 0, 3.0) for name in TYPES])
    options = argparse.Namespace(seeds=1, only=None, type=None)
    late = time.monotonic() + 1
    assert not issue_13485.run_jobs(bench, options, late)
    assert ran == []
    assert issue_13485.run_jobs(bench, options, late + 9999)
    assert len(ran) == 6
    assert issue_13485.run_jobs(bench, options, late)
    assert len(ran) == 6


def test_kl_is_that_of_the_definition() -> None:
    p, q = np.array([[0.5, 0.5]] * 40), np.array([[0.25, 0.75]] * 40)
    logs = [np.log(x).astype(np.float32) for x in (p, q)]
    assert mean_kl(logs[0], logs[1]) == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(2 / 3))
