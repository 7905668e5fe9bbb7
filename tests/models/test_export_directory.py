"""`pull` of a directory that edge-train export made, or of any directory with one model file."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from tiny_gguf import write_tiny_model

from edge_agent.errors import EdgeAgentError, ModelCorrupt, ModelFormatError, UsageError
from edge_agent.models.export_directory import MAX_MANIFEST_BYTES, model_in
from edge_agent.models.pull import PullJob, pull


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """A model, something that is no model, and the manifest."""
    directory = tmp_path / "export"
    directory.mkdir()
    path = write_tiny_model(directory / "lesson-q4_k_m.gguf")
    (directory / "lesson-lora.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    put(directory, {"model": {"file": path.name, "sha256": sha256}})
    return directory


@pytest.fixture
def job(tmp_path: Path) -> PullJob:
    return PullJob(tmp_path / "state" / "models", [].append, {}, lambda: 1.0)


def put(directory: Path, document: object) -> None:
    (directory / "export.json").write_text(json.dumps(document))


def test_an_export_is_pulled_under_the_name_of_its_model(exported: Path, job: PullJob) -> None:
    row = pull(str(exported), None, job)
    assert (row.name, row.source) == ("lesson-q4_k_m", str(exported))
    assert Path(row.path).read_bytes() == (exported / "lesson-q4_k_m.gguf").read_bytes()


def test_a_model_damaged_on_the_way_is_refused(exported: Path, job: PullJob) -> None:
    path = exported / "lesson-q4_k_m.gguf"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelCorrupt, match="did not arrive intact"):
        pull(str(exported), None, job)
    assert list(job.models_dir.glob("*.gguf")) == []


def test_without_a_manifest_the_only_model_is_meant(exported: Path, job: PullJob) -> None:
    (exported / "export.json").unlink()
    assert pull(str(exported), None, job).name == "lesson-q4_k_m"
    shutil.copy(exported / "lesson-q4_k_m.gguf", exported / "other.gguf")
    with pytest.raises(UsageError, match="2 model files"):
        pull(str(exported), None, job)


def test_an_empty_directory_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="0 model files"):
        model_in(tmp_path)


GOOD = "0" * 64


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        {},
        {"model": []},
        {"model": {"file": "lesson-q4_k_m.gguf"}},
        {"model": {"file": "../x.gguf", "sha256": GOOD}},
        {"model": {"file": "/etc/passwd", "sha256": GOOD}},
        {"model": {"file": "", "sha256": GOOD}},
        {"model": {"file": ".hidden", "sha256": GOOD}},
        {"model": {"file": 7, "sha256": GOOD}},
        {"model": {"file": "gone.gguf", "sha256": GOOD}},
        {"model": {"file": "lesson-q4_k_m.gguf", "sha256": "none"}},
    ],
)
def test_a_manifest_that_lies_is_refused(exported: Path, document: object) -> None:
    put(exported, document)
    with pytest.raises(ModelFormatError, match="cannot use the directory"):
        model_in(exported)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, " " * (MAX_MANIFEST_BYTES + 1) + "{}"])
def test_a_manifest_that_is_no_json_is_refused(exported: Path, text: str) -> None:
    (exported / "export.json").write_text(text)
    with pytest.raises(EdgeAgentError):
        model_in(exported)
