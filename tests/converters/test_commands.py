"""edge-convert's commands: what they say, and what they refuse."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from convert_runner import convert
from converted import contents, write
from tiny_checkpoint import write_checkpoint
from tiny_gguf import write_tiny_model

from converters.imatrix_file import Imatrix, read_imatrix, write_imatrix
from edge_agent.gguf.model_file import read_gguf


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "hf", "qwen2")
    return tmp_path / "hf"


def test_hf_writes_the_file_and_says_what_it_did(tmp_path: Path, checkpoint: Path) -> None:
    path = tmp_path / "m.gguf"
    done = convert("hf", str(checkpoint), "-o", str(path), "--type", "q4_k_m", "--json")
    document = done.document()
    assert done.code == 0
    assert document["file_type"] == "Q4_K_M"
    assert document["file_bytes"] == path.stat().st_size
    assert sum(document["types"].values()) == len(read_gguf(path).tensors)
    assert document["n_params"] == read_gguf(path).n_params
    assert document["peak_rss_bytes"] > 1e6


def test_without_output_the_file_is_named_after_directory_and_type(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkpoint.parent)
    assert convert("hf", "hf").code == 0
    assert (checkpoint.parent / "hf-q8_0.gguf").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--type", "q9_9"), "--type is 'q9_9'"),
        (("--type", "auto"), "--type auto needs --memory"),
        (("--type", "auto", "--memory", "lots"), "--memory is 'lots'"),
        (("--tensor-type", "ffn_down"), "it is no RE=TYPE"),
        (("--tensor-type", "ffn_down=q0_0"), "no tensor type 'q0_0'"),
        (("--token-embedding-type", "x"), "no tensor type 'x'"),
    ],
)
def test_flags_that_cannot_be_are_usage_errors(
    tmp_path: Path, checkpoint: Path, flags: tuple[str, ...], message: str
) -> None:
    done = convert("hf", str(checkpoint), "-o", str(tmp_path / "m.gguf"), *flags)
    assert (done.code, message in done.err) == (2, True), done.err
    assert not (tmp_path / "m.gguf").exists()


def test_auto_takes_the_largest_type_that_fits(tmp_path: Path, checkpoint: Path) -> None:
    chosen = {}
    for memory in ("108M", "4G"):
        path = tmp_path / f"{memory}.gguf"
        flags = ("--type", "auto", "--memory", memory, "--ctx", "256")
        done = convert("hf", str(checkpoint), "-o", str(path), *flags)
        chosen[memory] = read_gguf(path).quantization if done.code == 0 else done.err
    assert chosen["4G"] == "F16"
    done = convert(
        "hf", str(checkpoint), "-o", str(tmp_path / "x"), "--type", "auto", "--memory", "1M"
    )
    assert (done.code, "no type makes this model fit" in done.err) == (1, True)


def test_requantizing_must_be_asked_for(tmp_path: Path, checkpoint: Path) -> None:
    write(checkpoint, tmp_path / "q8.gguf", "Q8_0")
    command = ("quantize", str(tmp_path / "q8.gguf"), "-o", str(tmp_path / "q4.gguf"))
    done = convert(*command, "--type", "q4_0")
    assert (done.code, "is Q8_0 already" in done.err) == (1, True)
    assert "--allow-requantize" in done.err
    assert not (tmp_path / "q4.gguf").exists()
    assert convert(*command, "--type", "q4_0", "--allow-requantize").code == 0
    assert read_gguf(tmp_path / "q4.gguf").quantization == "Q4_0"


def test_quantize_from_f32_is_what_hf_writes_at_once(tmp_path: Path, checkpoint: Path) -> None:
    write(checkpoint, tmp_path / "f32.gguf")
    write(checkpoint, tmp_path / "direct.gguf", "Q5_K_M")
    command = ("quantize", str(tmp_path / "f32.gguf"), "-o", str(tmp_path / "q.gguf"))
    assert convert(*command, "--type", "q5_k_m").code == 0
    assert contents(tmp_path / "q.gguf") == contents(tmp_path / "direct.gguf")


def imatrix_for(path: Path, target: Path) -> None:
    rng = np.random.default_rng(3)
    matrices = [t for t in read_gguf(path).tensors if len(t.shape) == 2 and "blk" in t.name]
    write_imatrix(
        target,
        Imatrix(
            {t.name: rng.random(t.shape[0]).astype(np.float32) * 9 for t in matrices},
            {t.name: 512.0 for t in matrices},
            ("data.txt",),
            chunk_count=1,
            chunk_size=512,
        ),
    )


def test_imatrix_changes_bytes_and_is_noted(tmp_path: Path, checkpoint: Path) -> None:
    write(checkpoint, tmp_path / "f32.gguf")
    imatrix_for(tmp_path / "f32.gguf", tmp_path / "i.gguf")
    plain, weighed = tmp_path / "plain.gguf", tmp_path / "weighed.gguf"
    command = ("hf", str(checkpoint), "--type", "q4_k_m", "-o")
    assert convert(*command, str(plain)).code == 0
    assert convert(*command, str(weighed), "--imatrix", str(tmp_path / "i.gguf")).code == 0
    assert contents(plain) != contents(weighed)
    metadata = read_gguf(weighed).metadata
    assert metadata["quantize.imatrix.dataset"] == "data.txt"
    assert metadata["quantize.imatrix.chunks_count"] == 1


def test_imatrix_file_keeps_sums_and_counts(tmp_path: Path, checkpoint: Path) -> None:
    write(checkpoint, tmp_path / "f32.gguf")
    imatrix_for(tmp_path / "f32.gguf", tmp_path / "i.gguf")
    read = read_imatrix(tmp_path / "i.gguf")
    assert (read.datasets, read.chunk_count, read.chunk_size) == (("data.txt",), 1, 512)
    name = "blk.0.attn_q.weight"
    np.testing.assert_allclose(read.importance()[name], read.sums[name] / 512)


def test_a_few_bits_without_importance_are_refused(tmp_path: Path, checkpoint: Path) -> None:
    write_checkpoint(tmp_path / "wide", "qwen2")
    done = convert("hf", str(checkpoint), "-o", str(tmp_path / "m.gguf"), "--tensor-type",
                   "ffn_down=iq2_xxs", "--type", "q4_0")  # fmt: skip
    assert (done.code, "importance matrix" in done.err) == (1, True), done.err
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize("content", [b"", b"GGUF", b"\x03\x00\x00\x00legacy imatrix"])
def test_what_is_no_imatrix_is_refused(tmp_path: Path, checkpoint: Path, content: bytes) -> None:
    (tmp_path / "i").write_bytes(content)
    done = convert("hf", str(checkpoint), "-o", str(tmp_path / "m"), "--imatrix",
                   str(tmp_path / "i"))  # fmt: skip
    assert (done.code, "cannot use the importance matrix" in done.err) == (1, True)


def test_a_model_is_no_imatrix(tmp_path: Path, checkpoint: Path) -> None:
    write(checkpoint, tmp_path / "f32.gguf")
    done = convert("hf", str(checkpoint), "-o", str(tmp_path / "m"), "--imatrix",
                   str(tmp_path / "f32.gguf"))  # fmt: skip
    assert (done.code, "general.type is 'model'" in done.err) == (1, True)


def test_inspect_shows_bytes_by_type_and_the_memory_plan(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "m.gguf")
    done = convert("inspect", str(path), "--json", "--ctx", "256")
    document = done.document()
    file = read_gguf(path)
    assert sum(kind["bytes"] for kind in document["types"].values()) == file.tensor_bytes
    assert document["memory"]["n_ctx"] == 256
    parts = [document["memory"][f"{part}_bytes"] for part in ("tensor", "kv", "compute")]
    assert document["memory"]["total_bytes"] == sum(parts)
    assert min(parts) > 0
    text = convert("inspect", str(path), "--tensors").out
    assert "blk.1.ffn_down.weight" in text
    assert "KV cache" in text


def test_a_file_that_is_no_gguf_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"hello")
    for command in (("inspect",), ("quantize", "-o", "y"), ("to-hf", "-o", "y")):
        done = convert(command[0], str(tmp_path / "x.gguf"), *command[1:])
        assert (done.code, "cannot use the model file" in done.err) == (1, True)


def test_help_needs_no_heavy_library() -> None:
    program = (
        "import sys; from convert_runner import convert; done = convert('hf', '--help');"
        "print(done.code, sorted({'numpy', 'gguf', 'llama_cpp', 'torch'} & set(sys.modules)))"
    )
    helpers = Path(__file__).resolve().parents[1] / "helpers"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=helpers, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "0 []"


def test_converting_loads_no_torch_and_runs_no_code(tmp_path: Path, checkpoint: Path) -> None:
    program = (
        "import sys, socket; from converters.cli import main_with;"
        "socket.socket.connect = None;"
        "from edge_agent.cli.terminal import process_terminal;"
        f"code = main_with(['hf', {str(checkpoint)!r}, '-o', {str(tmp_path / 'm.gguf')!r}],"
        " process_terminal({}));"
        "print(code, sorted({'torch', 'transformers', 'safetensors'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr
