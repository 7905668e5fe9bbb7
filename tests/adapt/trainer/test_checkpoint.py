"""Checkpoints: what was saved comes back bit for bit, and nothing damaged is believed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from edge_agent.adapt.trainer import checkpoint as module
from edge_agent.adapt.trainer.checkpoint import (
    MAGIC,
    CheckpointDamaged,
    TrainingCheckpoint,
    TrainingCheckpoints,
    read,
    write,
)


def one(step: int = 7) -> TrainingCheckpoint:
    rng = np.random.default_rng(step)
    arrays = {
        "lora/blk.0.attn_q.weight.lora_a": rng.standard_normal((3, 5)).astype(np.float32),
        "m/empty": np.zeros((0, 4), np.float32),
        "v/double": rng.standard_normal(2),
    }
    return TrainingCheckpoint(step, {"loss": 0.1 + 0.2, "nothing": None, "kannada": "ಕ"}, arrays)


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path) -> None:
    saved = one()
    write(tmp_path / "x", saved)
    found = read(tmp_path / "x")
    assert (found.step, dict(found.state)) == (saved.step, dict(saved.state))
    assert list(found.arrays) == list(saved.arrays)
    for name, array in saved.arrays.items():
        assert found.arrays[name].dtype == array.dtype
        assert found.arrays[name].tobytes() == array.tobytes()
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_the_same_state_makes_the_same_file(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / name, one())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_every_flipped_bit_and_every_cut_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write(path, one())
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(CheckpointDamaged):
            read(path)
        path.write_bytes(whole[:place])
        with pytest.raises(CheckpointDamaged):
            read(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointDamaged, match="SHA-256"):
        read(path)


@pytest.mark.parametrize(
    ("header", "why"),
    [
        (b"[]", "header is broken"),
        (b"[" * 100_000, "header is broken"),
        (b'{"step":1,"state":{},"arrays":[["a","|O",[1]]]}', "type"),
        (b'{"step":1,"state":{},"arrays":[["a","<f4",[1000000000000]]]}', "do not fill"),
        (b'{"step":1,"state":{},"arrays":[["a","<f4",[-1]]]}', "shape"),
        (b'{"step":1,"state":{},"arrays":[["a","<f4"]]}', "header is broken"),
    ],
)
def test_a_hostile_header_with_a_right_digest_is_refused(
    tmp_path: Path, header: bytes, why: str
) -> None:
    body = MAGIC + struct.pack("<I", len(header)) + header
    (tmp_path / "x").write_bytes(body + hashlib.sha256(body).digest())
    with pytest.raises(CheckpointDamaged, match=why):
        read(tmp_path / "x")


def test_a_header_longer_than_the_file_is_refused(tmp_path: Path) -> None:
    body = MAGIC + struct.pack("<I", 1 << 31)
    (tmp_path / "x").write_bytes(body + hashlib.sha256(body).digest())
    with pytest.raises(CheckpointDamaged, match="claims"):
        read(tmp_path / "x")


def test_two_are_kept_and_the_one_before_replaces_a_damaged_one(tmp_path: Path) -> None:
    kept = TrainingCheckpoints(tmp_path)
    assert kept.newest() is None
    for step in (5, 10, 100):
        kept.save(one(step))
    assert [path.name for path in kept.paths()] == [
        "step-00000100.checkpoint",
        "step-00000010.checkpoint",
    ]
    newest = kept.paths()[0]
    newest.write_bytes(newest.read_bytes()[:-1])
    (tmp_path / ".step-00000101.checkpoint.tmp").write_bytes(b"half a sa")
    found = kept.newest()
    assert found is not None and found.step == 10
    assert kept.damaged == ["step-00000100.checkpoint: its SHA-256 is wrong"]
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000010.checkpoint"]


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    write(tmp_path / "real", one())
    (tmp_path / "step-00000001.checkpoint").symlink_to(tmp_path / "real")
    with pytest.raises(CheckpointDamaged, match="symbolic links"):
        read(tmp_path / "step-00000001.checkpoint")


def test_a_full_disk_keeps_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = TrainingCheckpoints(tmp_path)
    kept.save(one(1))
    real = module._write_all

    def full(file: object, block: memoryview) -> None:
        if file.tell() > 100:  # type: ignore[attr-defined]
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(file, block)

    monkeypatch.setattr(module, "_write_all", full)
    with pytest.raises(OSError, match="No space"):
        kept.save(one(2))
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001.checkpoint"]
    found = kept.newest()
    assert found is not None and found.step == 1


def test_only_float_arrays_are_stored(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="int64"):
        write(tmp_path / "x", TrainingCheckpoint(1, {}, {"ids": np.arange(3)}))
    assert list(tmp_path.iterdir()) == []


def test_the_state_is_plain_json(tmp_path: Path) -> None:
    write(tmp_path / "x", one())
    raw = (tmp_path / "x").read_bytes()
    (length,) = struct.unpack_from("<I", raw, len(MAGIC))
    header = json.loads(raw[len(MAGIC) + 4 : len(MAGIC) + 4 + length])
    assert header["state"]["loss"] == 0.1 + 0.2
