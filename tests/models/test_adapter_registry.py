"""The registry of adapters: what is registered, what is active, and what a crash leaves."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
from bad_adapters import good_adapter, write_bad_adapters
from random_adapter import write_adapter
from tiny_state import register_tiny

from edge_agent.errors import (
    AdapterNotFound,
    AdapterRefused,
    ModelNotFound,
    RequestError,
    StoreError,
)
from edge_agent.model_names import split_name
from edge_agent.models import checked_copy
from edge_agent.models.adapter_registry import TRIAL_S, AdapterRegistry, check_file
from edge_agent.store.store import Store


@dataclass
class Clock:
    now: float = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Rig:
    """A state directory with the tiny model registered as `tiny`."""

    store: Store
    root: Path
    base: Path
    clock: Clock
    registry: AdapterRegistry

    def add(self, name: str, *, passed: bool = True) -> None:
        """A random adapter, another one for each name."""
        path = self.root / f"source-{name}.gguf"
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
        write_adapter(path, self.base, seed)
        self.registry.add("tiny", name, path, source="trained", settings={"r": 4})
        if passed:
            self.registry.set_gate("tiny", name, {"passed": True, "reasons": []}, True)

    def activate(self, *names: str) -> None:
        """One after the other, each proved."""
        for name in names:
            self.registry.activate("tiny", name, force=False, reason="test")
            self.registry.prove("tiny", name)

    @property
    def active(self) -> str | None:
        row = self.registry.active("tiny")
        return row.name if row else None

    def events(self, kind: str) -> list[str]:
        return [event.detail for event in self.store.recent_events(99) if event.kind == kind]


@pytest.fixture
def rig(tmp_path: Path, tiny_model: Path) -> Iterator[Rig]:
    clock = Clock()
    with Store(tmp_path / "edge-agent.db") as store:
        register_tiny(store, tiny_model)
        registry = AdapterRegistry(store, tmp_path, clock=clock)
        yield Rig(store, tmp_path, tiny_model, clock, registry)


# ---- registering ---------------------------------------------------------------------------------


def test_a_new_adapter_is_a_candidate_with_its_own_read_only_file(rig: Rig) -> None:
    rig.add("lesson", passed=False)
    row = rig.registry.adapter("tiny", "lesson")
    assert (row.status, row.source, row.gate, row.settings) == (
        "candidate", "trained", None, {"r": 4},
    )  # fmt: skip
    path = rig.root / row.path
    assert path == rig.root / "adapters" / "tiny" / "lesson.gguf"
    assert path.read_bytes() == (rig.root / "source-lesson.gguf").read_bytes()
    assert path.stat().st_mode & 0o777 == 0o444
    assert path.parent.stat().st_mode & 0o077 == 0
    assert row.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [entry.name for entry in path.parent.iterdir()] == ["lesson.gguf"]
    assert rig.active is None


def test_rows_and_files_are_found_again_by_the_next_process(rig: Rig) -> None:
    rig.add("lesson")
    rig.activate("lesson")
    rig.store.close()
    with Store(rig.store.path) as store:
        again = AdapterRegistry(store, rig.root)
        active = again.active("tiny")
        assert active is not None and active == again.adapter("tiny", "lesson")
        assert (active.gate, active.settings) == ({"passed": True, "reasons": []}, {"r": 4})
        assert again.is_proved("tiny")


def test_every_bad_adapter_is_refused_and_leaves_nothing(rig: Rig) -> None:
    rig.add("lesson")
    rig.activate("lesson")
    directory = rig.root / "bad"
    directory.mkdir()
    cases = [case for case in write_bad_adapters(rig.base, directory) if "link" not in case.kind]
    assert len(cases) >= 40
    for case in cases:
        with pytest.raises(AdapterRefused) as refused:
            rig.registry.add("tiny", "bad", case.path, source="imported")
        assert str(case.path) in refused.value.what, case.kind
        assert refused.value.why and refused.value.hint, case.kind
    assert [row.name for row in rig.registry.adapters("tiny")] == ["lesson"]
    assert os.listdir(rig.root / "adapters" / "tiny") == ["lesson.gguf"]
    assert rig.active == "lesson"


def test_an_adapter_of_another_file_is_refused(rig: Rig) -> None:
    path = rig.root / "other.gguf"
    path.write_bytes(good_adapter(rig.base).said(edge_agent__base__sha256="ab" * 32).packed())
    with pytest.raises(AdapterRefused, match="made for the file with SHA-256 abab"):
        rig.registry.add("tiny", "other", path, source="imported")


@pytest.mark.parametrize("name", ["base", "latest", "", "Upper", "a:b", "../x", "a" * 65, "a/b"])
def test_names_that_could_mean_something_else_are_refused(rig: Rig, name: str) -> None:
    path = rig.root / "a.gguf"
    write_adapter(path, rig.base)
    with pytest.raises(RequestError, match="cannot be an adapter's name"):
        rig.registry.add("tiny", name, path, source="imported")
    with pytest.raises(ModelNotFound):
        rig.registry.add("nosuch", "fine", path, source="imported")
    assert not (rig.root / "adapters").exists()


def test_a_name_is_not_reused_but_the_same_file_may_come_twice(rig: Rig) -> None:
    rig.add("lesson")
    rig.add("lesson")
    other = rig.root / "other.gguf"
    write_adapter(other, rig.base, seed=99)
    with pytest.raises(RequestError, match="has an adapter lesson"):
        rig.registry.add("tiny", "lesson", other, source="trained")
    assert len(rig.registry.adapters("tiny")) == 1


def test_at_most_three_are_kept_and_never_the_active_one_goes(rig: Rig) -> None:
    for name in "abc":
        rig.add(name)
    rig.activate("a")
    rig.add("d")
    assert [row.name for row in rig.registry.adapters("tiny")] == ["a", "c", "d"]
    rig.add("e")
    assert [row.name for row in rig.registry.adapters("tiny")] == ["a", "d", "e"]
    assert sorted(os.listdir(rig.root / "adapters" / "tiny")) == ["a.gguf", "d.gguf", "e.gguf"]
    assert rig.events("adapter_removed") == [
        "tiny:c: at most 3 are kept", "tiny:b: at most 3 are kept",
    ]  # fmt: skip


def test_a_disk_without_room_is_said_before_a_byte_is_copied(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checked_copy, "RESERVE_BYTES", 1 << 60)
    with pytest.raises(StoreError, match="not enough space"):
        rig.add("lesson")
    assert rig.registry.adapters() == []


def test_a_removed_adapter_takes_its_file_along_and_an_active_one_stays(rig: Rig) -> None:
    rig.add("a")
    rig.add("b")
    rig.activate("a")
    with pytest.raises(RequestError, match="is active"):
        rig.registry.remove("tiny", "a")
    rig.registry.remove("tiny", "b")
    with pytest.raises(AdapterNotFound, match="it has: a"):
        rig.registry.adapter("tiny", "b")
    assert os.listdir(rig.root / "adapters" / "tiny") == ["a.gguf"]


def test_the_adapters_of_a_removed_model_go_with_it(rig: Rig) -> None:
    rig.add("a")
    rig.activate("a")
    rig.store.remove_model("tiny")
    rig.registry.remove_all("tiny")
    assert os.listdir(rig.root / "adapters" / "tiny") == []
    register_tiny(rig.store, rig.base)
    assert rig.active is None and rig.registry.adapters() == []


# ---- what a name means ---------------------------------------------------------------------------


def test_names_choose_the_active_adapter_the_base_or_one_of_them(rig: Rig) -> None:
    rig.add("a")
    rig.add("b", passed=False)
    assert [split_name(name) for name in ("m", "m:", "m:a:b")] == [
        ("m", None), ("m", ""), ("m", "a:b"),
    ]  # fmt: skip
    assert rig.registry.chosen("tiny", None) is None
    rig.activate("a")

    def chosen(tag: str | None) -> str | None:
        row = rig.registry.chosen("tiny", tag)
        return row.name if row else None

    tags = (None, "latest", "base", "a", "b")
    assert [chosen(tag) for tag in tags] == ["a", "a", None, "a", "b"]
    with pytest.raises(AdapterNotFound, match="has no adapter 'nosuch': it has: a, b"):
        chosen("nosuch")
    row = rig.registry.adapter("tiny", "b")
    assert row.id is not None and rig.registry.by_id("tiny", row.id) == row
    with pytest.raises(AdapterNotFound, match="with id 99"):
        rig.registry.by_id("tiny", 99)


def test_with_another_file_under_its_models_name_an_adapter_is_not_used(rig: Rig) -> None:
    rig.add("a")
    rig.activate("a")
    old = rig.store.model("tiny")
    rig.store.add_model(replace(old, sha256="cd" * 32))
    assert rig.active is None
    with pytest.raises(AdapterRefused, match="was made for a file with SHA-256"):
        rig.registry.chosen("tiny", "a")
    with pytest.raises(AdapterRefused, match="was made for a file"):
        rig.registry.activate("tiny", "a", force=True, reason="test")
    rig.store.add_model(old)
    assert rig.active == "a"


def test_a_reference_names_the_whole_path_and_the_scale_that_was_set(rig: Rig) -> None:
    rig.add("a")
    row = rig.registry.adapter("tiny", "a")
    reference = rig.registry.reference(row)
    assert (reference.path, reference.sha256) == (str(rig.root / row.path), row.sha256)
    assert reference.scale == 1.0
    rig.registry.set_scale(row, 0.25)
    assert rig.registry.reference(row).scale == 0.25
    rig.activate("a")
    assert rig.registry.reference(row).scale == 1.0


# ---- activating and going back -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("judge", "why"),
    [
        (lambda rig: None, "no gate has judged it yet"),
        (lambda rig: rig.registry.set_gate("tiny", "a", {}, False), "it failed its gate"),
        (lambda rig: (rig.registry.set_gate("tiny", "a", {}, True), rig.activate("a"),
                      rig.registry.rollback("tiny", "test")), "it was rolled back"),
    ],
)  # fmt: skip
def test_only_an_adapter_that_passed_is_activated_unforced(
    rig: Rig, judge: Callable[[Rig], object], why: str
) -> None:
    rig.add("a", passed=False)
    judge(rig)
    with pytest.raises(AdapterRefused, match=why):
        rig.registry.activate("tiny", "a", force=False, reason="test")
    assert rig.active is None
    rig.registry.activate("tiny", "a", force=True, reason="test")
    assert rig.active == "a"


def test_a_files_values_are_looked_at_once_in_each_process(rig: Rig) -> None:
    """By the registry that takes it in; a later daemon's looks again, at its first activation."""
    seen: list[str] = []

    def check(path: Path, base: Path, base_sha256: str) -> None:
        seen.append(path.name)
        check_file(path, base, base_sha256)

    rig.registry = AdapterRegistry(rig.store, rig.root, check=check)
    for name in "ab":
        rig.add(name)
    rig.activate("a", "b", "a")
    assert seen == [".a.gguf.tmp", ".b.gguf.tmp"]
    rig.registry = AdapterRegistry(rig.store, rig.root, check=check)
    rig.activate("b", "a", "b")
    assert seen[2:] == ["b.gguf", "a.gguf"]


def test_a_file_other_than_the_judged_one_gets_no_name(rig: Rig) -> None:
    source = rig.root / "source.gguf"
    judged = write_adapter(source, rig.base, 1)
    write_adapter(source, rig.base, 2)
    add = partial(rig.registry.add, "tiny", "a", source, source="trained")
    with pytest.raises(AdapterRefused, match="is not the file that was judged"):
        add(judged_sha256=judged.sha256)
    assert rig.registry.adapters() == [] and not list((rig.root / "adapters/tiny").iterdir())
    write_adapter(source, rig.base, 1)
    assert add(judged_sha256=judged.sha256).sha256 == judged.sha256
    assert add(judged_sha256=judged.sha256).sha256 == judged.sha256
    write_adapter(source, rig.base, 2)
    with pytest.raises(RequestError, match="names are not reused"):
        add(judged_sha256=hashlib.sha256(source.read_bytes()).hexdigest())


def test_a_file_that_changed_since_is_not_activated(rig: Rig) -> None:
    rig.add("a")
    path = rig.root / rig.registry.adapter("tiny", "a").path
    for spoil in (lambda: path.write_bytes(path.read_bytes()[:-4] + b"abcd"), path.unlink):
        path.chmod(0o600)
        spoil()
        with pytest.raises(AdapterRefused, match="not the file that was registered"):
            rig.registry.activate("tiny", "a", force=True, reason="test")
    assert rig.active is None


def test_rolling_back_goes_through_what_was_active_and_ends_at_the_base(rig: Rig) -> None:
    for name in "abc":
        rig.add(name)
    rig.activate("a", "b", "c")
    assert rig.registry.rollback("tiny", "worse") == "b"
    assert rig.active == "b"
    assert rig.registry.rollback("tiny", "worse") == "a"
    assert rig.registry.rollback("tiny", "worse") is None
    assert rig.active is None
    with pytest.raises(RequestError, match="nothing to go back to"):
        rig.registry.rollback("tiny", "worse")
    assert {row.status for row in rig.registry.adapters("tiny")} == {"rolled_back"}
    assert rig.events("adapter_rolled_back") == [
        "tiny: a -> base: worse", "tiny: b -> a: worse", "tiny: c -> b: worse",
    ]  # fmt: skip


def test_after_a_deactivation_rolling_back_is_the_adapter_again(rig: Rig) -> None:
    rig.add("a")
    rig.activate("a")
    rig.registry.deactivate("tiny", "test")
    rig.registry.deactivate("tiny", "twice is once")
    assert rig.active is None
    assert rig.registry.rollback("tiny", "test") == "a"
    assert rig.registry.adapter("tiny", "a").status == "passed"
    assert len(rig.events("adapter_deactivated")) == 1


def test_a_rollback_skips_what_is_gone_rolled_back_or_was_never_proved(rig: Rig) -> None:
    for name in ("good", "gone", "new"):
        rig.add(name)
    rig.activate("good", "gone", "new")
    rig.registry.remove("tiny", "gone")
    rig.add("untried")
    rig.registry.activate("tiny", "untried", force=False, reason="test")
    rig.registry.activate("tiny", "new", force=False, reason="test")
    assert rig.registry.rollback("tiny", "test") == "good"


def test_a_rollback_does_not_take_a_new_adapter_for_a_removed_one_of_its_name(rig: Rig) -> None:
    rig.add("a")
    rig.add("b")
    rig.activate("a", "b")
    rig.registry.remove("tiny", "a")
    write_adapter(rig.root / "other.gguf", rig.base, seed=99)
    rig.registry.add("tiny", "a", rig.root / "other.gguf", source="imported")
    assert rig.registry.rollback("tiny", "test") is None


def test_a_rollback_of_one_that_is_not_active_any_more_changes_nothing(rig: Rig) -> None:
    rig.add("a")
    rig.add("b")
    rig.activate("a", "b")
    assert rig.registry.rollback("tiny", "late", leaving="a") == "b"
    assert rig.registry.adapter("tiny", "a").status == "passed"
    assert rig.registry.rollback("tiny", "no fault", leaving="b", is_bad=False) == "a"
    assert rig.registry.adapter("tiny", "b").status == "passed"


def test_an_activation_is_on_trial_for_a_while_and_unproved_until_proved(rig: Rig) -> None:
    rig.add("a")
    assert not rig.registry.is_on_trial("tiny") and rig.registry.is_proved("tiny")
    rig.registry.activate("tiny", "a", force=False, reason="test")
    assert not rig.registry.is_proved("tiny")
    rig.registry.prove("tiny", "nosuch")
    assert not rig.registry.is_proved("tiny")
    rig.registry.prove("tiny", "a")
    assert rig.registry.is_proved("tiny") and rig.registry.is_on_trial("tiny")
    rig.clock.now += TRIAL_S
    assert not rig.registry.is_on_trial("tiny")


def test_a_hundred_switches_keep_the_history_short_and_the_state_right(rig: Rig) -> None:
    rig.add("a")
    rig.add("b")
    for _ in range(60):
        rig.activate("a", "b")
    count = "SELECT count(*) FROM activations"
    assert rig.store.transact(lambda db: db.execute(count).fetchone()[0]) == 100
    assert rig.registry.rollback("tiny", "test") == "a"


# ---- crashes -------------------------------------------------------------------------------------


def test_what_two_starts_could_not_prove_is_rolled_back_at_the_second(rig: Rig) -> None:
    rig.add("old")
    rig.add("new")
    rig.activate("old")
    rig.registry.activate("tiny", "new", force=False, reason="test")
    rig.registry.note_start()
    assert rig.active == "new" and not rig.registry.is_proved("tiny")
    rig.registry.note_start()
    assert rig.active == "old" and rig.registry.is_proved("tiny")
    rig.registry.note_start()
    assert rig.active == "old"
    assert rig.registry.adapter("tiny", "new").status == "passed"
    assert "ended twice" in rig.events("adapter_rolled_back")[0]


def test_what_the_first_start_proves_stays(rig: Rig) -> None:
    rig.add("new")
    rig.registry.activate("tiny", "new", force=False, reason="test")
    rig.registry.note_start()
    rig.registry.prove("tiny", "new")
    rig.registry.note_start()
    rig.registry.note_start()
    assert rig.active == "new"


SWITCHER = """
import sys
from pathlib import Path
from edge_agent.models.adapter_registry import AdapterRegistry
from edge_agent.store.store import Store

root = Path(sys.argv[1])
with Store(root / "edge-agent.db") as store:
    registry = AdapterRegistry(store, root, check=lambda path, base, sha256: None)
    print("ready", flush=True)
    while True:
        for name in "bca":
            registry.activate("tiny", name, force=False, reason="test")
            registry.prove("tiny", name)
            print(name, flush=True)
"""


@pytest.mark.parametrize("after", [0, 1, 2, 5, 9])
def test_killed_while_it_switches_the_old_or_the_new_one_is_active(rig: Rig, after: int) -> None:
    """F3: never neither, nor one from before the last that was acknowledged."""
    for name in "abc":
        rig.add(name)
    rig.activate("a")
    rig.store.close()
    command = [sys.executable, "-c", SWITCHER, str(rig.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [process.stdout.readline().strip() for _ in range(after + 1)]
        process.send_signal(signal.SIGKILL)
        said += process.stdout.read().split()
    acknowledged = said[-1] if len(said) > 1 else "a"
    allowed = {acknowledged, {"a": "b", "b": "c", "c": "a"}[acknowledged]}
    with Store(rig.store.path) as store:
        registry = AdapterRegistry(store, rig.root)
        for _ in range(2):
            active = registry.active("tiny")
            assert active is not None and active.name in allowed
            registry.note_start()
        active = registry.active("tiny")
        assert active is not None and active.name in allowed and registry.is_proved("tiny")


COPIER = """
import sys
from pathlib import Path
from edge_agent.models.adapter_registry import AdapterRegistry
from edge_agent.store.store import Store

root = Path(sys.argv[1])
def stall(path, base, sha256):
    print("checking", flush=True)
    sys.stdin.read()
with Store(root / "edge-agent.db") as store:
    registry = AdapterRegistry(store, root, check=stall)
    registry.add("tiny", "a", root / "source-a.gguf", source="trained")
"""


def test_killed_before_the_name_only_a_temporary_file_is_left_and_the_next_try_works(
    rig: Rig,
) -> None:
    write_adapter(rig.root / "source-a.gguf", rig.base, 1)
    rig.store.close()
    command = [sys.executable, "-c", COPIER, str(rig.root)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "checking\n"
        process.send_signal(signal.SIGKILL)
    directory = rig.root / "adapters" / "tiny"
    assert os.listdir(directory) == [".a.gguf.tmp"]
    with Store(rig.store.path) as store:
        registry = AdapterRegistry(store, rig.root)
        assert registry.adapters() == []
        registry.add("tiny", "a", rig.root / "source-a.gguf", source="trained")
        assert os.listdir(directory) == ["a.gguf"]
