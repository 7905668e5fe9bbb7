"""What does a lesson teach, and what does it cost everything else: forgetting, leaks, time?

Each run is a lesson as a user gives it: a fresh state directory, a daemon, `edge-agent adapt run
--no-activate`, then questions to MODEL:NAME at temperature 0. Flows in: recipes/lesson (the arms of
lesson_arms.py) and lesson_elsewhere.jsonl. Flows out: one JSON line a run, appended to --results;
finished runs of that file are skipped, so a series can be continued. `--program` measures another
checkout's edge-agent with the same questions. Both sides are scored by this checkout's llama.cpp,
outside the daemon. Not here: the figures themselves (lesson_answers.py, text_scores.py).

    .venv/bin/python benchmarks/lesson.py facts8 demo                     # seeds 1 to 3
    .venv/bin/python benchmarks/lesson.py demo --models gemma3-270m --seeds 1 \\
        --adapt "--layers top:8" --program OTHER/.venv/bin/edge-agent --label before
    .venv/bin/python benchmarks/lesson.py --table

Exit status 1 when a run failed; a gate that refuses is a result.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from lesson_answers import (
    FACT_TOKENS,
    TALK_TOKENS,
    WHO,
    Asker,
    Chats,
    bits,
    elsewhere,
    general_questions,
    identity,
    questions,
    right,
)
from lesson_arms import SEEDS, Arm, arms, chosen
from lesson_rows import read_jsonl
from lesson_table import table
from servers import PROGRAM, SAFE_PATH, BenchmarkError, Server, edge_agent, register
from stream_client import ask_json
from text_scores import TextScores

from edge_agent.records import Message

NAME = "lesson"
RESULTS = Path("lesson-results.jsonl")
Result = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One lesson to measure; `adapt` are the words for `adapt run` beside the seed."""

    arm: Arm
    model: str
    seed: int
    adapt: tuple[str, ...]
    label: str

    def key(self) -> Result:
        """What tells this run from every other of the results file."""
        return {
            "label": self.label,
            "arm": self.arm.name,
            "model": self.model,
            "seed": self.seed,
            "adapt": list(self.adapt),
        }


class Lessons:
    """Measures runs with one program, one after the other."""

    def __init__(
        self, program: Path, results: Path, keep: Path | None, threads: int | None
    ) -> None:
        self._program, self._keep, self.threads = program, keep, threads
        self._asker = Asker(results.with_suffix(".base.jsonl"))

    def measured(self, run: Run) -> Result:
        """Raises BenchmarkError."""
        with tempfile.TemporaryDirectory(prefix="edge-agent-lesson-") as scratch:
            state = Path(scratch)
            _, model = register(f"embedded:{run.model}", state, self._program)
            settings = {} if self.threads is None else {"threads": self.threads}
            with edge_agent(state, run.model, settings, self._program) as server:
                found = self._teach(run, server, state)
                taught = trained_chats(state)
                found |= self._asked(run, server, taught)
            adapter = state / "adapt" / NAME / "adapter.gguf"
            with TextScores(model, None, self.threads) as scores:
                found["bits_before"] = bits(scores, taught)
            with TextScores(model, adapter, self.threads) as scores:
                found["bits_after"] = bits(scores, taught)
            if self._keep is not None:
                self._keep.mkdir(parents=True, exist_ok=True)
                name = "-".join(str(value) for value in list(run.key().values())[:4])
                shutil.copyfile(adapter, self._keep / f"{name}.gguf")
        return found

    def _teach(self, run: Run, server: Server, state: Path) -> Result:
        data = state / "rows.jsonl"
        lines = [json.dumps(row, ensure_ascii=False) for row in run.arm.rows()]
        data.write_text("\n".join(lines) + "\n", encoding="utf-8")
        command = [str(self._program), "adapt", "run", "--json", "--no-activate"]
        command += ["--from", str(data), "--name", NAME, "--model", run.model]
        command += ["--seed", str(run.seed), *run.adapt]
        command += [] if self.threads is None else ["--threads", str(self.threads)]
        env = {**os.environ, **SAFE_PATH, "EDGE_AGENT_STATE_DIR": str(state)}
        began_s = time.monotonic()
        done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True)
        wall_s = time.monotonic() - began_s
        said = json.loads(done.stdout) if done.stdout.strip() else {}
        if "gate" not in said:
            why = said.get("error") or done.stderr.decode()[-600:]
            raise BenchmarkError(f"`{' '.join(command)}` ended with {done.returncode}: {why}")
        planned = ask_json(server.address, "/adapt")[1].get("planned") or {}
        return trained(said, planned, state / "adapt" / NAME, wall_s)

    def _asked(self, run: Run, server: Server, taught: Chats) -> Result:
        asker, address, learned = self._asker, server.address, f"{run.model}:{NAME}"
        asked = list(questions(run.arm.facts, {chat[0].content for chat in taught}))
        said = asker.all(address, learned, [one.text for one in asked], FACT_TOKENS)
        held = [one for one in asked if one.kind == "held_out"]
        unlearned = asker.base(address, run.model, [one.text for one in held], FACT_TOKENS)
        general = general_questions()
        base = asker.base(address, run.model, general, TALK_TOKENS)
        now = asker.all(address, learned, general, TALK_TOKENS)
        was_who = asker.base(address, run.model, WHO, TALK_TOKENS)
        now_who = asker.all(address, learned, WHO, TALK_TOKENS)
        return {
            "right": right(asked, said),
            "held_out_before": right(held, unlearned)["held_out"],
            "wrong": [
                [one.kind, one.text, text]
                for one, text in zip(asked, said, strict=True)
                if not right([one], [text])[one.kind]
            ],
            **elsewhere(taught, general, base, now),
            **identity(run.arm.facts, taught, was_who, now_who),
        }


def trained(said: Result, planned: Result, directory: Path, wall_s: float) -> Result:
    """The training and the gate in figures. `prepare_s` is the whole command without training and
    gate: reading, plan, stored states, rehearsal's targets."""
    result = json.loads((directory / "result.json").read_text())
    log = [row for row in read_jsonl(directory / "log.jsonl") if "seconds" in row]
    gate_s = said["gate"]["seconds"]
    kept = ("steps", "train_s", "tok_s", "layers", "best_epoch", "losses")
    return {
        **{name: result[name] for name in kept},
        **{name: result.get(name) for name in ("ended", "rehearsal", "end_loss", "trials")},
        "step_s": median(row["seconds"] for row in log) if log else None,
        "peak_bytes": result["peak_rss_anon_bytes"],
        "wall_s": round(wall_s, 2),
        "gate_s": gate_s,
        "prepare_s": round(wall_s - result["train_s"] - gate_s, 2),
        "prefix_s": planned.get("prefix_s"),
        "planned_rehearsal": planned.get("rehearsal"),
        "planned_bytes": (planned.get("bytes") or {}).get("total"),
        "adapter_sha256": result["adapter_sha256"],
        "gate": {name: said["gate"][name] for name in ("passed", "reasons", "checks")},
    }


def trained_chats(state: Path) -> Chats:
    """The chats that were trained, as the trainer split them; rehearsal is not among them."""
    split = json.loads((state / "adapt" / NAME / "split.json").read_text())
    return [[Message(one["role"], one["content"]) for one in chat] for chat in split["train"]]


def wanted(args: argparse.Namespace) -> Iterator[Run]:
    """The first seed of every arm before the second of any."""
    for seed in args.seeds:
        for arm in chosen(args.arms or [arm.name for arm in arms()]):
            for model in arm.models:
                if seed in arm.seeds and model in (args.models or arm.models):
                    words = (*arm.adapt[model], *args.adapt)
                    yield Run(arm, model, seed, words, args.label)


def stored(path: Path) -> list[Result]:
    """The finished runs of a results file."""
    return read_jsonl(path) if path.exists() else []


def series(runs: Sequence[Run], lessons: Lessons, path: Path) -> bool:
    """Measure what `path` does not hold yet. Returns whether every run ended with figures."""
    all_ended = True
    for run in runs:
        if any(run.key().items() <= one.items() and "error" not in one for one in stored(path)):
            continue
        print(f"{' '.join(map(str, run.key().values()))} ...", file=sys.stderr)
        try:
            found = lessons.measured(run)
        except BenchmarkError as error:
            print(f"error: {error}", file=sys.stderr)
            found, all_ended = {"error": str(error)}, False
        now = time.strftime("%Y-%m-%dT%H:%M:%S")
        with path.open("a", encoding="utf-8") as lines:
            line = {"v": 1, **run.key(), "ended_at": now, "threads": lessons.threads, **found}
            lines.write(json.dumps(line, ensure_ascii=False) + "\n")
    return all_ended


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("arms", nargs="*", help=f"[all: {', '.join(one.name for one in arms())}]")
    parser.add_argument("--models", nargs="+", help="only these [each arm's own]")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--adapt", type=str.split, default=[], help="more words for `adapt run`")
    parser.add_argument("--program", type=Path, default=PROGRAM, help="another edge-agent [ours]")
    parser.add_argument("--label", default="after", help="written into every line [after]")
    parser.add_argument("--results", type=Path, default=RESULTS, help=f"[{RESULTS}]")
    parser.add_argument("--keep", type=Path, help="copy the adapters into this folder")
    parser.add_argument("--threads", type=int, help="of daemon, trainer and scores [theirs]")
    parser.add_argument("--table", action="store_true", help="only print what --results holds")
    args = parser.parse_args()
    try:
        runs = list(wanted(args))
    except ValueError as error:
        parser.error(str(error))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the daemon is stopped
    lessons = Lessons(args.program, args.results, args.keep, args.threads)
    ended = args.table or series(runs, lessons, args.results)
    print(table(stored(args.results)))
    return 0 if ended else 1


if __name__ == "__main__":
    sys.exit(main())
