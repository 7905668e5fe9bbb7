"""`--device cuda`: refused by name without CuPy or a GPU; a whole run on a fake of CuPy.

No test here ran on a GPU: fake_cupy.py refuses what CuPy refuses, and computes with NumPy.
tests/adapt/trainer/decoder/test_decoder_cupy.py compares the real CuPy where there is one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_cupy
import msgspec
import numpy as np
import pytest
from tiny_gguf import write_tiny_model
from trainer_runner import TrainerProcess, start_message, train, write_lesson

from edge_agent.adapt.messages import Finished, FromTrainer, Planned, Stop, Stopped
from edge_agent.adapt.trainer import blas, device, manifest
from edge_agent.adapt.trainer.pauses import FrontOrders
from edge_agent.adapt.trainer.reporter import Reporter
from edge_agent.adapt.trainer.training_run import carry_out
from edge_agent.errors import TrainingFailed, UsageError
from edge_agent.gguf.adapter_file import check_adapter
from edge_agent.gguf.model_file import read_gguf


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf", n_layer=4)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lesson(tmp_path_factory.mktemp("data") / "lesson.jsonl")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The fake in the place of CuPy. This process has loaded BLAS already, with its threads."""
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", str(blas.loaded().n_threads or 1))
    return fake_cupy.installed(monkeypatch)


def run_here(
    model: Path,
    run_dir: Path,
    data: Path,
    send: Callable[[FromTrainer], None] = lambda _: None,
    orders: FrontOrders | None = None,
    **fields: Any,
) -> FromTrainer:
    """A run in this process, where the fake is installed."""
    start = start_message(model, run_dir, data, device="cuda", **fields)
    with Reporter(send) as reporter:
        return carry_out(start, orders or FrontOrders(), reporter)


def adapter_bytes(finished: FromTrainer) -> bytes:
    assert isinstance(finished, Finished)
    return Path(finished.adapter_path).read_bytes()


# ---- a whole run ---------------------------------------------------------------------------------


@pytest.mark.parametrize("rehearsal", ["kl", "answers", "none"])
def test_a_whole_run_mixes_no_array_of_numpy_with_one_of_cupy(
    model: Path, data: Path, tmp_path: Path, installed: Any, rehearsal: str
) -> None:
    """From the trials of `auto` through checkpoints to the adapter; it learns what NumPy learns."""
    fields = {"layers": "auto", "epochs": 3, "lora_dropout": 0.1, "rehearsal": rehearsal}
    before = fake_cupy.FakeArray.transfers
    finished = run_here(model, tmp_path / "cuda", data, **fields)
    assert isinstance(finished, Finished) and fake_cupy.FakeArray.transfers > before
    info = check_adapter(Path(finished.adapter_path), read_gguf(model), None)
    assert info.sha256 == finished.adapter_sha256
    expected = train(start_message(model, tmp_path / "cpu", data, **fields))
    assert finished.layers == expected.layers and finished.ended == expected.ended
    losses = [[one["train_loss"] for one in run.losses] for run in (finished, expected)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)


def test_stopped_and_resumed_it_ends_with_the_same_adapter(
    model: Path, data: Path, tmp_path: Path, installed: Any
) -> None:
    whole, orders = run_here(model, tmp_path / "whole/run", data, epochs=4), FrontOrders()

    def stop(record: FromTrainer) -> None:
        if getattr(record, "step", 0) >= 7:
            orders.take(Stop())

    stopped = run_here(model, tmp_path / "cut/run", data, stop, orders, epochs=4)
    assert isinstance(stopped, Stopped)
    resumed = run_here(model, tmp_path / "cut/run", data, epochs=4, resume=True)
    assert adapter_bytes(resumed) == adapter_bytes(whole)


def test_a_plan_says_what_its_bytes_are(
    model: Path, data: Path, tmp_path: Path, installed: Any
) -> None:
    planned = run_here(model, tmp_path / "run", data, plan_only=True)
    assert isinstance(planned, Planned) and planned.epoch_s is not None
    assert any(note.startswith("device cuda: the bytes") for note in planned.notes)


def test_the_manifest_holds_the_device_and_a_run_does_not_change_it(
    model: Path, data: Path, tmp_path: Path, installed: Any
) -> None:
    with TrainerProcess(start_message(model, tmp_path / "run", data, epochs=400)) as trainer:
        trainer.wait_for(Planned)
        trainer.send(Stop())
        trainer.wait_for(Stopped)
    with pytest.raises(TrainingFailed) as refused:
        run_here(model, tmp_path / "run", data, epochs=400, resume=True)
    assert "settings.device: began with cpu, is cuda now" in refused.value.why
    assert "software.gpu: began with None, is a fake GPU now" in refused.value.why
    run_here(model, tmp_path / "other", data)
    began = manifest.read(tmp_path / "other" / manifest.FILE_NAME)
    assert began is not None and began.circumstances.settings.device == "cuda"
    assert began.circumstances.software["cuda"] == "12060"


def test_a_manifest_from_before_the_setting_counts_as_cpu(
    model: Path, data: Path, tmp_path: Path
) -> None:
    train(start_message(model, tmp_path / "run", data, epochs=1))
    path = tmp_path / "run" / manifest.FILE_NAME
    document = msgspec.json.decode(path.read_bytes())
    del document["circumstances"]["settings"]["device"]
    path.write_bytes(msgspec.json.encode(document))
    began = manifest.read(path)
    assert began is not None and began.circumstances.settings.device == "cpu"


# ---- refused ---------------------------------------------------------------------------------


def test_without_cupy_it_is_refused_before_any_work(
    model: Path, data: Path, tmp_path: Path
) -> None:
    """In the trainer's own process, which has no CuPy."""
    if _has_cupy():
        pytest.skip("CuPy is installed")
    start = start_message(model, tmp_path / "run", data, device="cuda")
    with TrainerProcess(start) as trainer:
        refused = trainer.failure()
    assert refused.code == "usage_error" and refused.what == "cannot train with --device cuda"
    assert "CuPy cannot be imported by" in refused.why and "No module named 'cupy'" in refused.why
    assert refused.hint.endswith("or train with --device cpu")
    assert not (tmp_path / "run/data.jsonl").exists() and not list(
        (tmp_path / "run").glob("*.json")
    )


def _has_cupy() -> bool:
    try:
        import cupy  # noqa: F401
    except ImportError:
        return False
    return True


@pytest.mark.parametrize(
    ("version", "is_jetson", "expected"),
    [
        ((12, 6), False, "the driver knows CUDA 12.6: `{pip} cupy-cuda12x`"),
        ((13, 0), False, "the driver knows CUDA 13.0: `{pip} cupy-cuda13x`"),
        ((10, 2), True, "JetPack has CUDA 10.2: `{pip} cupy-cuda102`"),
        ((11, 4), True, "JetPack has CUDA 11.4: `{pip} cupy-cuda11x`"),
        (None, False, "there is no NVIDIA driver here (libcuda.so.1): install it first"),
    ],
)
def test_the_hint_names_the_package_of_the_drivers_cuda(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: Any, is_jetson: bool, expected: str
) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(device, "driver_version", lambda: version)
    release = tmp_path / "nv_tegra_release"
    monkeypatch.setattr(device, "TEGRA_RELEASE", release)
    if is_jetson:
        release.touch()
    with pytest.raises(UsageError) as refused:
        device.array_module("cuda")
    pip = f"{sys.executable} -m pip install"
    assert refused.value.hint == f"{expected.format(pip=pip)}, or train with --device cpu"


def test_cupy_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cupy.installed(monkeypatch, n_gpus=0)
    with pytest.raises(UsageError, match="finds no CUDA device"):
        device.array_module("cuda")


def test_a_driver_that_does_not_answer_is_named(installed: Any) -> None:
    def failing() -> int:
        raise RuntimeError("cudaErrorInsufficientDriver")

    installed.cuda.runtime.getDeviceCount = failing
    with pytest.raises(UsageError, match="cudaErrorInsufficientDriver"):
        device.array_module("cuda")


@pytest.mark.parametrize("wrong", ["raises", "computes"])
def test_a_gpu_that_cannot_compute_is_refused(installed: Any, wrong: str) -> None:
    def exp(values: Any) -> Any:
        if wrong == "raises":
            raise RuntimeError("libnvrtc.so.12: cannot open shared object file")
        return values

    installed.exp = exp
    with pytest.raises(UsageError) as refused:
        device.array_module("cuda")
    assert ("libnvrtc" if wrong == "raises" else "where 4 is right") in refused.value.why


def test_the_fake_refuses_what_cupy_refuses() -> None:
    """A fake that converts silently would make the tests above say nothing."""
    cupy = fake_cupy.fake_cupy()
    array, host = cupy.asarray(np.ones(3), "f4"), np.ones(3, "f4")
    for mixed in (
        lambda: np.asarray(array),
        lambda: array + host,
        lambda: host + array,
        lambda: array.__setitem__(slice(None), host),
        lambda: host.__setitem__(slice(None), array),
        lambda: array[np.array([0])],
        lambda: np.concatenate([array, array]),
        lambda: cupy.exp(host),
    ):
        with pytest.raises(TypeError):
            mixed()
    assert isinstance(array.sum(), fake_cupy.FakeArray) and float(array.sum()) == 3
