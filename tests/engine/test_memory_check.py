from pathlib import Path

import pytest
from tiny_gguf import write_tiny_model

from edge_agent.engine.memory_check import admit, still_fits
from edge_agent.errors import ModelRefused
from edge_agent.gguf.model_file import GgufFile, read_gguf
from edge_agent.machine import MemoryInfo, default_slots, read_memory
from edge_agent.records import EngineSettings

MIB = 1024 * 1024
PROCESS = 96 * MIB


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> GgufFile:
    path = tmp_path_factory.mktemp("admission") / "tiny.gguf"
    return read_gguf(write_tiny_model(path, n_ctx_train=8192))


def compute(n_ctx: int, slots: int) -> int:
    return n_ctx * slots * 1000


def memory(mib: float) -> MemoryInfo:
    return MemoryInfo(8_000_000_000, int(mib * MIB) + PROCESS)


def test_plenty_of_memory_gives_the_default_context_for_every_slot(gguf: GgufFile) -> None:
    plan = admit(gguf, EngineSettings(), memory(4000), compute).plan
    assert (plan.n_ctx, plan.slots) == (4096, 4)


def test_a_4_gb_board_gets_two_slots() -> None:
    assert default_slots(MemoryInfo(4_100_000_000, 1)) == 2


def test_the_context_shrinks_until_it_fits_and_says_so(gguf: GgufFile) -> None:
    full = admit(gguf, EngineSettings(), memory(4000), compute).plan
    admission = admit(gguf, EngineSettings(), memory(full.total_bytes / MIB * 0.7), compute)
    assert admission.plan.n_ctx == 2048
    assert "cut from 4096 to 2048" in admission.notes[1]


def test_ctx_max_asks_for_what_the_model_was_trained_for(gguf: GgufFile) -> None:
    assert admit(gguf, EngineSettings(n_ctx=0), memory(4000), compute).plan.n_ctx == 8192


def test_a_context_that_was_asked_for_is_not_shrunk_but_refused_with_three_numbers(
    gguf: GgufFile,
) -> None:
    with pytest.raises(ModelRefused) as refusal:
        admit(gguf, EngineSettings(n_ctx=8192, slots=4), memory(10), compute)
    assert all(word in refusal.value.why for word in ("tensors", "KV cache", "compute buffer"))
    assert "would fit" in refusal.value.hint


def test_nothing_fits_and_the_hint_does_not_pretend(gguf: GgufFile) -> None:
    with pytest.raises(ModelRefused) as refusal:
        admit(gguf, EngineSettings(), memory(0), compute)
    assert "would fit" not in refusal.value.hint and "smaller" in refusal.value.hint


def test_a_budget_below_the_free_memory_counts(gguf: GgufFile) -> None:
    settings = EngineSettings(memory_budget_bytes=PROCESS)
    with pytest.raises(ModelRefused, match="needs") as refusal:
        admit(gguf, settings, memory(4000), compute)
    assert "--memory" in refusal.value.why


def test_a_containers_limit_is_named_in_the_refusal(gguf: GgufFile) -> None:
    left = MemoryInfo(512 * MIB, 9 * MIB, "what /sys/fs/cgroup/memory.max leaves")
    with pytest.raises(ModelRefused, match="needs") as refusal:
        admit(gguf, EngineSettings(), left, compute)
    assert "what /sys/fs/cgroup/memory.max leaves is 9 MiB" in refusal.value.why


def test_meminfo_is_read_below_a_root(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text(
        "MemTotal:  2048 kB\nMemFree: 1 kB\nMemAvailable: 1024 kB\n"
    )
    assert read_memory(tmp_path) == MemoryInfo(2 * MIB, MIB)


def test_an_earlier_plan_is_compared_with_what_is_available_now(gguf: GgufFile) -> None:
    plan = admit(gguf, EngineSettings(), memory(4000), compute).plan
    needed = plan.total_bytes / MIB
    assert still_fits(plan, EngineSettings(), memory(needed + 1))
    assert not still_fits(plan, EngineSettings(), memory(needed - 1))
