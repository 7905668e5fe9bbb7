"""Does a bad adapter ever end the worker, or change an answer of the adapter that is in use?

Every kind of tests/helpers/bad_adapters.py meets the two checks of a daemon. First
adapter_file.check_adapter, through which every adapter enters the registry: it must refuse the file
for the reason that is wrong with it. Then, as if the file had been changed after that, the worker
process: while it answers with a good adapter, it is told to check the bad one (CheckAdapter) and to
answer with it (Generate). The worker must survive, and the answers of the good adapter and of the
base, at temperature 0, must stay the same. What the worker accepts is shown: whether an adapter was
made for another base is checked by the registry only, and a link is read as the file it names and
held to its SHA-256. Exit status 1: the registry's check accepted a kind, the worker accepted a kind
of the sources "tried" and "near" (apart from NOT_THE_WORKERS), an answer changed, or it died.

    .venv/bin/python benchmarks/adapter_refusals.py                   # last line: JSON
    .venv/bin/python benchmarks/adapter_refusals.py --model embedded:smollm2-135m
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from servers import BenchmarkError, register

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests" / "helpers"))

from bad_adapters import BadAdapter, good_adapter, write_bad_adapters
from tiny_gguf import CHATML_TEMPLATE, write_tiny_model
from worker_process import WorkerProcess, chat

from edge_agent.errors import AdapterRefused, EdgeAgentError
from edge_agent.gguf.adapter_file import check_adapter
from edge_agent.gguf.model_file import GgufFile, read_gguf
from edge_agent.records import (
    AdapterRef,
    CheckAdapter,
    Chunk,
    Done,
    EngineSettings,
    Failed,
    Text,
)

PROMPT = "Name a river."
N_TOKENS = 24
STRENGTH = 0.1
"""Scale of the good adapter's values: enough to change the answer, too little to make it noise."""
NOT_THE_WORKERS = ("made for another base",)
"""Kinds with which the worker can compute; the registry checks which base they belong to."""


@dataclass(frozen=True)
class Outcome:
    """`check` and `worker` are the reasons of the refusals; None: it was accepted."""

    kind: str
    source: str
    check: str | None
    is_expected: bool
    worker: str | None
    is_alive: bool
    is_unchanged: bool

    @property
    def is_met(self) -> bool:
        must = self.source != "more" and self.kind not in NOT_THE_WORKERS
        refused = self.check is not None and self.is_expected
        return refused and self.is_alive and self.is_unchanged and (bool(self.worker) or not must)


def sha256_of(path: Path) -> str:
    """Zeros when `path` is no file, which could not have been registered."""
    if not path.is_file():
        return "0" * 64
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class Trial:
    """A worker, its good adapter, and the answers that must not change."""

    def __init__(self, worker: WorkerProcess, model: Path, good: AdapterRef) -> None:
        self._worker = worker
        self._base: GgufFile = read_gguf(model)
        self._base_sha256 = sha256_of(model)
        self._good = good
        self._next_id = 10
        self._plain = self._answer(None)
        self._taught = self._answer(good)
        if self._plain == self._taught:
            raise BenchmarkError("the good adapter changes no answer, so a mix-up cannot be seen")

    def run(self, bad: BadAdapter) -> Outcome:
        check, is_expected = self._check(bad)
        try:
            worker, is_unchanged = self._meet(AdapterRef(str(bad.path), sha256_of(bad.path)))
            is_unchanged = is_unchanged and self._answer(self._good) == self._taught
            is_unchanged = is_unchanged and self._answer(None) == self._plain
            is_alive = self._worker.process.poll() is None
        except (EOFError, OSError):
            worker, is_alive, is_unchanged = None, False, False
        return Outcome(bad.kind, bad.source, check, is_expected, worker, is_alive, is_unchanged)

    def _check(self, bad: BadAdapter) -> tuple[str | None, bool]:
        """(the reason for which the registry would refuse it, whether that is the expected
        reason)."""
        try:
            check_adapter(bad.path, self._base, self._base_sha256)
        except AdapterRefused as error:
            return error.why, bad.why in error.why
        return None, False

    def _meet(self, adapter: AdapterRef) -> tuple[str | None, bool]:
        """(the reason for which the worker refused it, whether the answer beside it is
        unchanged)."""
        answer, check, use = range(self._next_id, self._next_id + 3)
        self._next_id += 3
        self._worker.send(
            chat(answer, PROMPT, adapter=self._good, max_tokens=N_TOKENS, cache_prompt=False),
            CheckAdapter(check, adapter),
            chat(use, PROMPT, adapter=adapter, max_tokens=4, cache_prompt=False),
        )
        said, refused, ended = {answer: "", use: ""}, dict[int, str](), 0
        while ended < 3:
            record = self._worker.receive()
            if isinstance(record, Chunk | Done):
                said[record.id] += record.text
            if isinstance(record, Failed) and record.id is not None:
                refused[record.id] = f"{record.code}: {record.why}"
            ended += isinstance(record, Done | Failed | Text)
        is_typed = all(why.startswith("adapter_refused") for why in refused.values())
        both = check in refused and use in refused and is_typed
        return (refused[check] if both else None), said[answer] == self._taught

    def _answer(self, adapter: AdapterRef | None) -> str:
        self._next_id += 1
        request = chat(
            self._next_id, PROMPT, adapter=adapter, max_tokens=N_TOKENS, cache_prompt=False
        )
        return self._worker.answer(request)[0]


def measure(name: str, scratch: Path) -> dict[str, Any]:
    """The report. Raises BenchmarkError."""
    model = _model(name, scratch)
    directory = scratch / "bad"
    directory.mkdir()
    good = scratch / "good.gguf"
    good.write_bytes(good_adapter(model, scale=STRENGTH).packed())
    began = time.monotonic()
    with WorkerProcess() as worker:
        worker.load(model, EngineSettings(n_ctx=512, slots=2, n_threads=2))
        trial = Trial(worker, model, AdapterRef(str(good), sha256_of(good)))
        outcomes = [trial.run(bad) for bad in write_bad_adapters(model, directory)]
    named = [one for one in outcomes if one.source != "more"]
    return {
        "kinds": len(outcomes),
        "kinds_tried_or_near": len(named),
        "refused_by_check": sum(one.check is not None for one in outcomes),
        "for_their_own_reason": sum(one.is_expected for one in outcomes),
        "refused_by_worker": sum(one.worker is not None for one in outcomes),
        "taken_by_worker": [one.kind for one in outcomes if one.is_alive and not one.worker],
        "deaths": sum(not one.is_alive for one in outcomes),
        "answers_changed": sum(not one.is_unchanged for one in outcomes),
        "seconds": round(time.monotonic() - began, 1),
        "outcomes": [asdict(one) for one in outcomes],
        "met": all(one.is_met for one in outcomes),
    }


def _model(name: str, scratch: Path) -> Path:
    if name == "tiny":
        return write_tiny_model(scratch / "tiny.gguf", chat_template=CHATML_TEMPLATE)
    return Path(name) if Path(name).is_file() else register(name, scratch)[1]


def show(report: dict[str, Any]) -> str:
    head = (
        f"{'':5} {'kind':34} {'worker':8} {'alive':6} {'same':5} why the registry's check refuses"
    )
    lines = [
        f"{one['source']:5} {one['kind']:34} {'refused' if one['worker'] else 'TAKEN':8} "
        f"{'yes' if one['is_alive'] else 'DEAD':6} {'yes' if one['is_unchanged'] else 'NO':5} "
        f"{(one['check'] or 'TAKEN')[:100]}"
        for one in report["outcomes"]
    ]
    return "\n".join([
        head,
        *lines,
        f"{report['refused_by_check']} of {report['kinds']} kinds refused before llama.cpp sees "
        f"them, {report['for_their_own_reason']} for their own reason; handed to the worker "
        f"directly: {report['refused_by_worker']} refused, {report['deaths']} deaths, "
        f"{report['answers_changed']} answers changed; {report['seconds']} s",
    ])  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny", help="tiny, a file, or what pull takes")
    args = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="edge-agent-refusals-") as scratch:
            report = measure(args.model, Path(scratch))
    except (BenchmarkError, EdgeAgentError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(show(report))
    print(json.dumps({"benchmark": "adapter_refusals", "model": args.model, **report}))
    return 0 if report["met"] else 1


if __name__ == "__main__":
    sys.exit(main())
