"""Where no file can be put, a command says so before it works; what lies there stays."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from convert_runner import convert
from tiny_checkpoint import write_checkpoint

PLACES = {
    "a directory": "it is a directory",
    "a directory with a slash": "it is a directory",
    "a pipe": "it is a device, a pipe or a socket",
    "a socket": "it is a device, a pipe or a socket",
    "a device": "it is a device, a pipe or a socket",
    "a link to a device": "it is a device, a pipe or a socket",
    "a directory that is not there": "there is no directory",
}


def place(tmp_path: Path, kind: str) -> str:
    path = tmp_path / "place"
    if kind.startswith("a directory that"):
        return str(path / "m.gguf")
    if kind.startswith("a directory"):
        path.mkdir()
        return f"{path}/" if "slash" in kind else str(path)
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a socket":
        socket.socket(socket.AF_UNIX).bind(str(path))
    elif kind == "a link to a device":
        path.symlink_to("/dev/null")
    else:
        return "/dev/null"
    return str(path)


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize("command", ["hf", "quantize", "imatrix", "lora"])
def test_a_place_for_no_file_is_refused_before_the_work(
    tmp_path: Path, kind: str, command: str
) -> None:
    """The inputs do not exist: whoever began to work would complain of them."""
    output = place(tmp_path, kind)
    before = Path(output).lstat() if os.path.lexists(output) else None
    given = {
        "hf": ("hf", str(tmp_path / "none")),
        "quantize": ("quantize", str(tmp_path / "none.gguf")),
        "imatrix": ("imatrix", str(tmp_path / "none.gguf"), "--data", str(tmp_path / "none.txt")),
        "lora": ("lora", str(tmp_path / "none"), "--base", str(tmp_path / "none.gguf")),
    }[command]
    done = convert(*given, "-o", output)
    assert (done.code, PLACES[kind] in done.err) == (1, True), done.err
    after = Path(output).lstat() if os.path.lexists(output) else None
    assert (before and (before.st_mode, before.st_ino)) == (after and (after.st_mode, after.st_ino))


def test_a_model_is_not_written_over_itself(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf", "qwen2")
    path = tmp_path / "m.gguf"
    assert convert("hf", str(tmp_path / "hf"), "-o", str(path), "--type", "f32").code == 0
    kept = path.read_bytes()
    done = convert("quantize", str(path), "-o", str(tmp_path / "x" / ".." / "m.gguf"))
    assert done.code == 1
    (tmp_path / "link.gguf").symlink_to(path)
    done = convert("quantize", str(path), "-o", str(tmp_path / "link.gguf"))
    assert (done.code, "it is what the new file is made of" in done.err) == (1, True)
    assert path.read_bytes() == kept
