"""`edge-agent bench`: plans, records and the whole command on a tiny model and a fixture board."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from cli_runner import cli
from tiny_gguf import write_tiny_model
from worker_process import WorkerProcess

from edge_agent.bench import table as bench_table
from edge_agent.bench.bandwidth import bytes_per_token, read_bandwidth
from edge_agent.bench.engines import RequestRun
from edge_agent.bench.trials import Bench, TrialPlan
from edge_agent.cli.commands.bench_options import (
    BenchOptions,
    engine_settings,
    numbers,
    plan_of,
    power_choice,
)
from edge_agent.errors import UsageError
from edge_agent.gguf.model_file import read_gguf
from edge_agent.measured import Span
from edge_agent.monitor.board_sampler import BoardSampler
from edge_agent.records import EngineSettings, Failed, Message, RawDone, RawRun

BOARD = Path(__file__).resolve().parents[1] / "fixtures" / "sysfs" / "jetson-nano_jetpack4"
LLAMA_BENCH_FIELDS = {
    "build_commit", "build_number", "cpu_info", "gpu_info", "backends", "model_filename",
    "model_type", "model_size", "model_n_params", "n_batch", "n_ubatch", "n_threads", "type_k",
    "type_v", "n_gpu_layers", "flash_attn", "n_prompt", "n_gen", "n_depth", "test_time", "avg_ns",
    "stddev_ns", "avg_ts", "stddev_ts", "samples_ns", "samples_ts",
}  # fmt: skip
QUICK = ("-p", "16", "-n", "8", "-r", "2", "--idle-s", "0", "--languages", "en")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("bench") / "tiny.gguf")


def test_lists_take_ranges_with_step_and_factor() -> None:
    assert numbers("-p", "0,128-512*2, 7,1-5+2") == [0, 128, 256, 512, 7, 1, 3, 5]


@pytest.mark.parametrize("text", ["", "x", "-1", "5-1", "0-8*2", "1-9*1", "1..3"])
def test_lists_that_make_no_sense_are_usage_errors(text: str) -> None:
    with pytest.raises(UsageError):
        numbers("-p", text)


def test_plan_holds_each_test_at_each_depth_and_each_chat() -> None:
    options = BenchOptions(
        n_prompt="64,0", n_gen="8", n_depth="0,32", pg=["16,4"], concurrency="1,2"
    )
    labels = [trial.label for trial in plan_of(options).tests]
    assert labels[:3] == ["pp64", "tg8", "pp16+tg4"]
    assert labels[3:6] == ["pp64 @ d32", "tg8 @ d32", "pp16+tg4 @ d32"]
    assert labels[6:] == [f"chat {x} x{n}" for x in ("en", "hi", "kn") for n in (1, 2)]


def test_engine_has_room_for_the_largest_test_and_a_slot_for_each_chat() -> None:
    options = BenchOptions(n_prompt="4000", n_depth="96", concurrency="1,3", threads="1,2")
    first, second = engine_settings(options, plan_of(options))
    assert (first.n_ctx, first.slots) == (4096, 3)
    assert (first.n_threads, second.n_threads) == (1, 2)


def test_empty_plan_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="nothing to measure"):
        plan_of(BenchOptions(scenario="raw", n_prompt="0", n_gen="0"))


class FakeEngine:
    """Says that each token took 10 ms; labelled fake, it computes nothing."""

    name, pid = "fake", None

    def raw(self, number: int, n_prompt: int, n_gen: int, n_depth: int) -> RequestRun:
        start_s = 1000.0 + number
        first_s, end_s = start_s + n_prompt / 100, start_s + (n_prompt + n_gen) / 100
        spans = [Span(start_s, end_s, "decode", 1.0, n_gen)]
        return RequestRun(start_s, first_s, end_s, n_prompt, n_gen, spans)

    def chat(self, conversations: list[list[Message]], n_predict: int) -> list[RequestRun]:
        return [self.raw(0, 4, n_predict, 0) for _ in conversations]


def plan_of_one(**flags: Any) -> TrialPlan:
    """Five tokens to decode, without an idle baseline."""
    return plan_of(BenchOptions(scenario="raw", n_prompt="0", n_gen="5", idle_s=0, **flags))


def test_the_defaults_of_the_engine_flags_are_the_engines() -> None:
    options = BenchOptions()
    (settings,) = engine_settings(options, plan_of(options))
    names = ("n_batch", "flash_attn", "type_k", "type_v", "n_gpu_layers", "n_threads")
    for name in names:
        assert getattr(settings, name) == getattr(EngineSettings(), name), name


def test_a_power_source_that_does_not_exist_is_refused() -> None:
    assert power_choice(BenchOptions(power_source="rapl")) == "rapl"
    with pytest.raises(UsageError, match="^--power-source is 'sun'"):
        power_choice(BenchOptions(power_source="sun"))


def test_repetitions_are_counted_without_the_warm_up() -> None:
    ticks: list[str] = []
    sampler = BoardSampler(Path("/nowhere"))
    plan = plan_of_one(repetitions=3)
    runner = Bench(plan, sampler, tick=ticks.append, sleep=lambda s: None)
    (outcome,) = runner.run(FakeEngine(), runner.baseline())
    assert len(outcome.runs) == 3 and ticks == ["tg5"] * 4 and plan.steps == 4
    assert outcome.energy.total_j is None and outcome.energy.reason


def test_hot_board_is_waited_for_and_the_wait_is_bounded(tmp_path: Path) -> None:
    root = tmp_path / "board"
    zone = root / "sys/devices/virtual/thermal/thermal_zone0"
    zone.mkdir(parents=True)
    (zone / "type").write_text("CPU-therm\n")
    (zone / "temp").write_text("71500\n")
    slept: list[float] = []
    notices: list[str] = []
    sampler = BoardSampler(root)
    sampler.start()
    while sampler.snapshot() is None:
        pass
    plan = plan_of_one(repetitions=1, cool_down_to=60, cool_down_s=5)
    runner = Bench(plan, sampler, notice=notices.append, sleep=slept.append)
    (outcome,) = runner.run(FakeEngine(), runner.baseline())
    sampler.close()
    assert slept.count(1.0) == 5 and notices == ["cooling down from 71.5 to 60.0 C"]
    assert outcome.notes == ("started at 71.5 C: not down to 60.0 C in 5 s",)


def test_raw_run_times_its_phases_and_leaves_the_cache_empty(tiny: Path) -> None:
    with WorkerProcess() as worker:
        worker.load(tiny, EngineSettings(n_ctx=256, slots=1))
        worker.send(RawRun(5, n_prompt=40, n_gen=6, n_depth=20))
        done = worker.receive()
        assert isinstance(done, RawDone) and done.id == 5
        assert done.prefill_start_s < done.prefill_end_s < done.decode_end_s
        worker.send(RawRun(6, n_prompt=0, n_gen=256))
        assert isinstance(worker.receive(), RawDone)


def test_raw_run_that_does_not_fit_is_refused(tiny: Path) -> None:
    with WorkerProcess() as worker:
        worker.load(tiny, EngineSettings(n_ctx=256, slots=1))
        worker.send(RawRun(5, n_prompt=200, n_gen=57))
        failed = worker.receive()
        assert isinstance(failed, Failed) and "257 tokens" in failed.what


def test_adapter_that_is_none_is_refused_before_llama_cpp_sees_it(tiny: Path) -> None:
    with WorkerProcess() as worker:
        settings = EngineSettings(n_ctx=256, slots=1, adapters=[str(tiny)])
        worker.send(load_record(tiny, settings))
        failed = worker.receive()
        assert isinstance(failed, Failed) and failed.code == "adapter_refused"
        assert "general.type" in failed.why


def load_record(path: Path, settings: EngineSettings):
    from edge_agent.records import Load

    return Load("tiny", str(path), settings)


def test_bandwidth_is_that_of_memory() -> None:
    assert 1e8 < read_bandwidth(1, 8 << 20) < 1e13


def test_bytes_per_token_are_weights_once_and_the_cache(tiny: Path) -> None:
    gguf = read_gguf(tiny)
    empty = bytes_per_token(gguf, EngineSettings(), 0)
    assert 0 < empty <= gguf.tensor_bytes
    per_cell = 2 * 2 * gguf.n_layer * gguf.n_head_kv * gguf.head_dim
    assert bytes_per_token(gguf, EngineSettings(), 10) == empty + 10 * per_cell


@pytest.fixture(scope="module")
def documents(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """One real run of the command on the fixture board, stored, as JSON."""
    state = tmp_path_factory.mktemp("state")
    root = state / "board"
    shutil.copytree(BOARD, root)
    flags = [
        "--n-predict",
        "8",
        "--sensors-root",
        str(root),
        "--json",
        "--board-name",
        "tiny board",
    ]
    done = cli("bench", str(tiny), *QUICK, *flags, state_dir=state)
    assert done.code == 0, done.err
    return done.document()


def test_documents_are_a_superset_of_llama_bench(documents: list[dict]) -> None:
    assert [bench_table.label(one) for one in documents] == ["pp16", "tg8", "chat en x1"]
    for one in documents:
        assert set(one) >= LLAMA_BENCH_FIELDS
        assert len(one["samples_ns"]) == len(one["samples_ts"]) == 2
        assert one["min_ts"] <= one["median_ts"] <= one["max_ts"]
        assert one["v"] == 1 and one["repetitions"] == 2 and one["published"] is False


def test_documents_name_board_sensor_and_why_joules_are_missing(documents: list[dict]) -> None:
    decode = documents[1]
    assert decode["board"]["model"].startswith("NVIDIA Jetson Nano")
    assert decode["board_name"] == "tiny board"
    assert decode["energy"]["source"] == "ina3221" and decode["energy"]["rail"] == "POM_5V_IN"
    assert decode["energy"]["total_j"] is None and "samples" in decode["energy"]["reason"]
    assert decode["roofline_fraction"] > 0 and decode["roofline_tok_s"] > 0


def test_chat_has_its_latencies_and_exactly_the_tokens_asked_for(documents: list[dict]) -> None:
    chat = documents[2]
    assert chat["completion_tokens"] == 16 and chat["n_prompt"] > 5
    for name in ("ttft_s", "tpot_s", "e2e_s"):
        spread = chat[name]
        assert 0 < spread["min"] <= spread["median"] <= spread["max"]
    assert chat["roofline_fraction"] is None


def test_csv_and_markdown_hold_the_same_rows(documents: list[dict]) -> None:
    table = list(csv.DictReader(io.StringIO(bench_table.as_csv(documents))))
    assert [float(row["avg_ts"]) for row in table] == [one["avg_ts"] for one in documents]
    assert json.loads(table[0]["energy"])["source"] == "ina3221"
    assert bench_table.markdown(documents).count("\n") == len(documents) + 1


def test_table_ends_with_one_json_line_and_stores(tiny: Path, tmp_path: Path) -> None:
    done = cli("bench", str(tiny), *QUICK, "--scenario", "raw", state_dir=tmp_path)
    assert done.code == 0, done.err
    summary = json.loads(done.out.splitlines()[-1])
    assert summary["documents"] == 2 and summary["stored"] is True
    assert set(summary["median_tok_s"]) == {"tiny pp16", "tiny tg8"}


def test_unknown_language_is_a_usage_error(tmp_path: Path) -> None:
    done = cli("bench", "x.gguf", "--languages", "xx", state_dir=tmp_path)
    assert done.code == 2 and "en, hi, kn" in done.err


def test_no_registered_model_says_what_to_do(tmp_path: Path) -> None:
    done = cli("bench", state_dir=tmp_path)
    assert done.code == 1 and "edge-agent pull" in done.err
