"""/metrics is well-formed, says nothing it does not know, does not grow, and fits the dashboard."""

from __future__ import annotations

import gc
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import http_front
import prometheus_client
import pytest
from fake_engine import model_info
from fake_sampler import NOTHING, FakeSampler, FakeSnapshot
from http_front import serving
from prometheus_client.parser import text_string_to_metric_families
from waiting import until

from edge_agent.monitor.board_sampler import BoardSampler
from edge_agent.monitor.sensors.readings import Alarms, Cpu, Power
from edge_agent.server import app as server_app
from edge_agent.server import metrics as server_metrics
from edge_agent.server.metrics import FAMILIES, METRICS, PREFIX, Live, Metrics
from edge_agent.store.rows import GenerationRow
from edge_agent.supervisor.engine_status import EngineStatus

ROOT = Path(__file__).resolve().parents[2]
READY = EngineStatus("ready", "tiny", model_info(), in_flight=1, queued=2, restarts=4)
ROW = GenerationRow(
    started_at=1.0, duration_s=3.0, model="tiny", api="openai.chat", prompt_tokens=30,
    cached_tokens=10, completion_tokens=11, prefill_s=0.5, decode_s=2.0, ttft_s=0.75,
    finish_reason="stop", prefill_j=2.0, decode_j=8.0, total_j=10.0, energy_rail="VDD_IN",
)  # fmt: skip

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def live(snapshot: FakeSnapshot | None = None, status: EngineStatus = READY) -> Live:
    return Live(
        status=lambda: status,
        models=lambda: ["tiny", "other"],
        snapshot=lambda: cast(Any, snapshot),
        guard_stage=lambda: 2,
    )


def parsed(text: bytes) -> Samples:
    """Every sample; names without the prefix. Raises for a duplicate."""
    found: Samples = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            key = (sample.name.removeprefix(PREFIX), frozenset(sample.labels.items()))
            assert sample.name.startswith(PREFIX)
            assert key not in found
            found[key] = sample.value
    return found


def value(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((name, frozenset(labels.items())))


def names(samples: Samples) -> set[str]:
    return {name for name, _ in samples}


def full() -> Metrics:
    """Everything there is has a value."""
    metrics = Metrics()
    metrics.attach(live(FakeSnapshot()))
    metrics.observe(ROW)
    metrics.rejected("overloaded")
    metrics.watch(cast(Any, FakeSnapshot(alarms=Alarms(("over_current:VDD_IN",)))))
    return metrics


def test_every_metric_of_the_list_is_exported_with_its_help_and_type() -> None:
    families = list(text_string_to_metric_families(full().text().decode()))
    found = {family.name: (family.type, family.documentation) for family in families}
    expected = {
        # The parser takes _total off a counter's name.
        (PREFIX + name).removesuffix("_total"): (family.kind, family.help)
        for name, family in FAMILIES.items()
    }
    assert found == expected


def test_a_request_moves_the_counters() -> None:
    metrics = full()
    metrics.observe(replace(ROW, finish_reason=None, error_code="worker_failed"))
    samples = parsed(metrics.text())
    assert value(samples, "prompt_tokens_total") == 40.0
    assert value(samples, "generated_tokens_total") == 22.0
    assert value(samples, "prefill_seconds_total") == 1.0
    assert value(samples, "decode_seconds_total") == 4.0
    assert value(samples, "request_duration_seconds_sum") == 6.0
    assert value(samples, "time_to_first_token_seconds_bucket", le="1.0") == 2.0
    assert value(samples, "time_per_output_token_seconds_sum") == pytest.approx(0.4)
    assert value(samples, "requests_total", api="openai.chat", outcome="stop") == 1.0
    assert value(samples, "requests_total", api="openai.chat", outcome="worker_failed") == 1.0
    assert value(samples, "requests_rejected_total", reason="overloaded") == 1.0
    assert value(samples, "energy_joules_total", rail="VDD_IN", phase="decode") == 16.0


def test_joules_without_phases_are_counted_too() -> None:
    metrics = Metrics()
    metrics.observe(replace(ROW, prefill_j=None))
    metrics.observe(replace(ROW, prefill_j=None, decode_j=None))
    metrics.observe(replace(ROW, prefill_j=None, decode_j=None, total_j=None))
    samples = parsed(metrics.text())
    by_phase = {
        phase: value(samples, "energy_joules_total", rail="VDD_IN", phase=phase)
        for phase in ("prefill", "decode", "unsplit")
    }
    assert by_phase == {"prefill": None, "decode": 8.0, "unsplit": 12.0}


def test_a_request_that_never_began_adds_no_times() -> None:
    metrics = Metrics()
    metrics.observe(GenerationRow(1.0, 0.5, "tiny", "ollama.chat", error_code="model_refused"))
    samples = parsed(metrics.text())
    assert value(samples, "time_to_first_token_seconds_count") == 0.0
    assert value(samples, "time_per_output_token_seconds_count") == 0.0
    assert value(samples, "request_duration_seconds_count") == 1.0
    assert "energy_joules_total" not in names(samples)


def test_live_values_are_those_of_the_snapshot() -> None:
    samples = parsed(full().text())
    assert value(samples, "power_watts", rail="VDD_IN") == 4.5
    assert value(samples, "power_watts", rail="VDD_SOC") == 1.25
    assert value(samples, "temperature_celsius", zone="GPU-therm") == 47.25
    assert value(samples, "memory_available_bytes") == 1e9
    assert value(samples, "memory_rss_anon_bytes", process="worker") == 9e7
    assert value(samples, "cpu_load_ratio") == 0.75
    assert value(samples, "gpu_clock_hertz") == 3e8
    assert value(samples, "sampler_missed_ticks_total") == 3.0
    assert value(samples, "model_loaded", model="tiny") == 1.0
    assert value(samples, "model_loaded", model="other") == 0.0
    assert value(samples, "requests_in_flight") == 1.0
    assert value(samples, "requests_queued") == 2.0
    assert value(samples, "worker_restarts_total") == 4.0
    assert value(samples, "guard_stage") == 2.0
    assert value(samples, "build_info", version=server_metrics.__version__) == 1.0


@pytest.mark.parametrize("snapshot", [None, NOTHING])
def test_what_cannot_be_read_is_absent(snapshot: FakeSnapshot | None) -> None:
    metrics = Metrics()
    metrics.attach(replace(live(snapshot), guard_stage=lambda: None))
    text = metrics.text()
    board = {
        name for name in FAMILIES if re.match("power|temp|memory|cpu|gpu|guard|throttle", name)
    }
    assert len(board) == 10
    assert names(parsed(text)) & board == set()
    assert b"NaN" not in text and b"None" not in text


def test_a_figure_that_is_not_finite_is_absent() -> None:
    metrics = Metrics()
    metrics.attach(live(FakeSnapshot(cpu_load=float("nan"))))
    assert value(parsed(metrics.text()), "cpu_load_ratio") is None


def test_a_counter_without_watts_shows_the_samplers() -> None:
    rapl = FakeSnapshot(power=Power("rapl", "package-0", joules={"package-0": 99.0}), total_w=12.5)
    metrics = Metrics()
    metrics.attach(live(rapl))
    assert value(parsed(metrics.text()), "power_watts", rail="package-0") == 12.5


def test_an_alarm_counts_when_it_begins_and_the_kernels_count_wins() -> None:
    metrics = Metrics()
    sampler = FakeSampler()
    sampler.subscribe(metrics.watch)
    metrics.attach(replace(live(), snapshot=sampler.snapshot))
    for at_s, active in enumerate([("a",), ("a",), (), ("a", "b"), ("b",)]):
        sampler.tell(float(at_s), alarms=Alarms(active, {"b": 70}), cpu=Cpu(throttle_count=5))
    samples = parsed(metrics.text())
    counts = {cause: value(samples, "throttle_events_total", cause=cause) for cause in ("a", "b")}
    assert counts == {"a": 2.0, "b": 70.0}
    assert value(samples, "throttle_events_total", cause="cpu") == 5.0


def test_a_thousand_scrapes_do_not_grow() -> None:
    metrics = full()
    for _ in range(50):
        metrics.text()
    size = len(metrics.text())
    before = live_blocks()
    for _ in range(1000):
        assert len(metrics.text()) == size
    assert live_blocks() - before < 200


def live_blocks() -> int:
    """Pieces of memory Python holds: what tracemalloc would count, without slowing the scrapes."""
    gc.collect()
    return sys.getallocatedblocks()


def test_a_registry_belongs_to_one_application() -> None:
    one, two = Metrics(), Metrics()
    one.observe(ROW)
    assert value(parsed(two.text()), "generated_tokens_total") == 0.0
    assert PREFIX.encode() not in prometheus_client.generate_latest(prometheus_client.REGISTRY)


def test_the_import_brings_no_other_server() -> None:
    program = "import sys, edge_agent.server.metrics\nprint(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    loaded = set(done.stdout.split())
    assert "prometheus_client.registry" in loaded, done.stderr
    unwanted = {"twisted", "django", "prometheus_client.twisted", "prometheus_client.aiohttp"}
    assert loaded & unwanted == set()


@pytest.fixture
def wired(monkeypatch: pytest.MonkeyPatch) -> Iterator[Metrics]:
    """The route and its Metrics in every front, whether or not app.py has them already."""
    metrics, build = full(), http_front.build_app

    def with_metrics(*args: Any, **named: Any) -> Any:
        app = build(*args, **named)
        app[METRICS] = metrics
        return app

    routes = tuple(dict.fromkeys((*server_app.API, *server_metrics.ROUTES)))
    monkeypatch.setattr(server_app, "API", routes)
    monkeypatch.setattr(http_front, "build_app", with_metrics)
    yield metrics


def test_prometheus_reads_it_over_tcp_with_the_token(tmp_path: Path, wired: Metrics) -> None:
    with serving(tmp_path) as front:
        answer = front.get("/metrics")
        refused = front.get("/metrics", token=None)
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert value(parsed(answer.body), "power_watts", rail="VDD_IN") == 4.5
    assert refused.status == 401
    assert PREFIX.encode() not in refused.body


# ---- the dashboard ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dashboard() -> str:
    """What the generator prints now."""
    script = [sys.executable, str(ROOT / "docs" / "make_grafana.py")]
    done = subprocess.run(script, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_grafana_dashboard_is_current(dashboard: str) -> None:
    hint = "run: .venv/bin/python docs/make_grafana.py > docs/grafana.json"
    assert (ROOT / "docs" / "grafana.json").read_text() == dashboard, hint


def test_every_metric_of_the_dashboard_is_exported_and_the_other_way_round() -> None:
    document = json.loads((ROOT / "docs" / "grafana.json").read_text())
    expressions = [target["expr"] for panel in document["panels"] for target in panel["targets"]]
    used = set(re.findall(rf"{PREFIX}(\w+)", " ".join(expressions)))
    exported = names(parsed(full().text()))
    assert used <= exported
    assert {name.removesuffix("_bucket") for name in used} == set(FAMILIES)


def test_dashboard_panels_do_not_overlap(dashboard: str) -> None:
    panels = json.loads(dashboard)["panels"]
    places = [panel["gridPos"] for panel in panels]
    cells = [(x, y) for at in places for x in range(at["x"], at["x"] + at["w"]) for y in [at["y"]]]
    assert len(set(cells)) == len(cells) and max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_a_real_sampler_has_what_is_read_here(tmp_path: Path) -> None:
    """An empty tree: every field is there, and every figure is unknown."""
    sampler = BoardSampler(tmp_path, idle_hz=50.0)
    metrics = Metrics()
    metrics.attach(replace(live(), snapshot=sampler.snapshot))
    sampler.subscribe(metrics.watch)
    sampler.start()
    try:
        until(sampler.snapshot)
    finally:
        sampler.close()
    samples = parsed(metrics.text())
    assert value(samples, "sampler_missed_ticks_total") is not None
    assert "power_watts" not in names(samples)
