"""Is a poisoned lesson stopped, in which 20 of 100 rows contradict others, or loop?

Lessons of 100 rows made of recipes/lesson are given to `edge-agent adapt run` as a user would: a
clean one, one with 20 rows that answer another row's question with another fact's answer, and one
with 20 rows that repeat their answer many times. First with the default settings: the audit must
refuse the two, with data_refused and no adapter, and must accept the clean one. Then once more with
--no-audit, without a target, to show what the gate alone catches. Exit status 1 when the audit is
wrong. Not here: other kinds of poison (tests/adapt/trainer/test_audit.py).

    .venv/bin/python benchmarks/poison.py                    # last line: JSON
    .venv/bin/python benchmarks/poison.py --audit-only       # trains nothing
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lesson_rows import LANGUAGES, LESSON, Fact, read_facts, row
from servers import BenchmarkError, register

from edge_agent.adapt.trainer.audit import audit
from edge_agent.adapt.trainer.dataset import read_rows

MODEL = "gemma3-270m"
N_ROWS, N_POISONED, WORDINGS = 100, 20, 4
TURN = WORDINGS * len(LANGUAGES)
"""Number of rows from one fact to the next fact of the same language."""
SEED = 1
TIMES = 6
"""How often a looping row repeats its answer."""
SHOWN_CHARACTERS = 160

Rows = list[dict[str, str]]


@dataclass(frozen=True)
class Lesson:
    """`poisoned` are numbers of rows, counted from 1."""

    name: str
    rows: Rows
    poisoned: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Outcome:
    """One lesson. `flagged`: poisoned rows that the audit finds; `flagged_beside`: other rows.

    `gate_passed` None: the lesson was not taught without the audit.
    """

    lesson: str
    flagged: int
    flagged_beside: int
    is_refused: bool
    said: str
    is_met: bool
    gate_passed: bool | None
    failed_checks: list[str]
    reasons: list[str]


# ---- the lessons -------------------------------------------------------------------------------


def lessons(facts: Sequence[Fact]) -> list[Lesson]:
    """The lessons, always the same for the same facts."""
    return [
        Lesson("clean", clean(facts)),
        poisoned("contradictory", facts, contradict),
        poisoned("looping", facts, loop),
    ]


def clean(facts: Sequence[Fact]) -> Rows:
    """N_ROWS rows: WORDINGS of each of N_ROWS // WORDINGS facts, the languages in turn."""
    by_language = [[one for one in facts if one.language == code] for code in LANGUAGES]
    mixed = [fact for group in zip(*by_language, strict=False) for fact in group]
    chosen = mixed[: N_ROWS // WORDINGS]
    return [row(asked, fact.answer) for fact in chosen for asked in fact.questions[:WORDINGS]]


def poisoned(name: str, facts: Sequence[Fact], change: Callable[[Rows, int], None]) -> Lesson:
    """The clean rows with N_POISONED of them changed, never the first row of a fact."""
    rows = clean(facts)
    places = [place for place in range(len(rows)) if place % WORDINGS]
    chosen = sorted(random.Random(SEED).sample(places, N_POISONED))
    for place in chosen:
        change(rows, place)
    return Lesson(name, rows, frozenset(place + 1 for place in chosen))


def contradict(rows: Rows, place: int) -> None:
    """Ask the question of the fact's first row, with the answer of another fact of its language."""
    first, number = place - place % WORDINGS, place % WORDINGS
    other = (place + number * TURN) % (len(rows) - len(rows) % TURN)
    rows[place] = row(rows[first]["instruction"], rows[other]["output"])


def loop(rows: Rows, place: int) -> None:
    one = rows[place]
    rows[place] = row(one["instruction"], " ".join([one["output"]] * TIMES))


# ---- what the product does with them -----------------------------------------------------------


def taught(path: Path, name: str, state_dir: Path, *more: str) -> dict[str, Any]:
    """The JSON document of `adapt run`, also when it failed."""
    command = [str(Path(sys.executable).parent / "edge-agent"), "adapt", "run", "--json"]
    command += ["--from", str(path), "--name", name, "--model", MODEL, "--no-activate", *more]
    env = {**os.environ, "EDGE_AGENT_STATE_DIR": str(state_dir)}
    done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True)
    if not done.stdout.strip():
        raise BenchmarkError(f"`{' '.join(command)}` failed: {done.stderr.decode()[-600:]}")
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def outcome(lesson: Lesson, state_dir: Path, args: argparse.Namespace) -> Outcome:
    """Run one lesson. Raises BenchmarkError."""
    print(f"{lesson.name} ...", file=sys.stderr)
    path = state_dir / f"{lesson.name}.jsonl"
    lines = [json.dumps(one, ensure_ascii=False) for one in lesson.rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    found = {finding.row for finding in audit(read_rows(path))}
    quick = ["--layers", args.layers, "--epochs", str(args.epochs)]
    refusal = refused(path, lesson, state_dir, quick) if lesson.poisoned else {}
    is_refused = refusal.get("code") == "data_refused"
    gate: dict[str, Any] = {}
    if not args.audit_only:
        gate = taught(path, lesson.name, state_dir, *quick, "--no-audit")["gate"]
    checks = gate.get("checks", {})
    return Outcome(
        lesson.name,
        len(found & lesson.poisoned),
        len(found - lesson.poisoned),
        is_refused,
        f"{refusal['what']}: {refusal['why']}"[:SHOWN_CHARACTERS] if refusal else "",
        is_met=is_refused if lesson.poisoned else not found,
        gate_passed=gate.get("passed"),
        failed_checks=[name for name, check in checks.items() if not check["passed"]],
        reasons=gate.get("reasons", []),
    )


def refused(path: Path, lesson: Lesson, state_dir: Path, quick: Sequence[str]) -> dict[str, Any]:
    """The error with which `adapt run` ends; {} when it made an adapter nevertheless."""
    name = f"{lesson.name}-audited"
    error: dict[str, Any] = taught(path, name, state_dir, *quick).get("error", {})
    return {} if (state_dir / "adapt" / name / "adapter.gguf").exists() else error


def show(outcomes: Sequence[Outcome]) -> None:
    print(f"{'lesson':15}{'poisoned rows':>14}{'others':>8}  {'audit':10}{'gate alone'}")
    for one in outcomes:
        total = f"{one.flagged} of {N_POISONED if one.lesson != 'clean' else 0}"
        audited = "refused" if one.is_refused else "-" if one.lesson == "clean" else "LEARNED"
        gate = "not asked"
        if one.gate_passed is not None:
            gate = "passed" if one.gate_passed else f"failed: {', '.join(one.failed_checks)}"
        print(f"{one.lesson:15}{total:>14}{one.flagged_beside:>8}  {audited:10}{gate}")
    for one in outcomes:
        if one.said:
            print(f"{one.lesson}: {one.said}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", default="top:4", help="as `adapt run` takes them [top:4]")
    parser.add_argument("--epochs", type=int, default=4, help="at most [4]")
    parser.add_argument("--audit-only", action="store_true", help="do not teach without the audit")
    args = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="edge-agent-poison-") as scratch:
            register(f"embedded:{MODEL}", Path(scratch))
            outcomes = [outcome(one, Path(scratch), args) for one in lessons(read_facts(LESSON))]
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    show(outcomes)
    is_met = all(one.is_met for one in outcomes)
    report = {"outcomes": [asdict(one) for one in outcomes], "met": is_met}
    settings = {"layers": args.layers, "epochs": args.epochs}
    print(json.dumps({"benchmark": "poison", "model": MODEL, **settings, **report}))
    return 0 if is_met else 1


if __name__ == "__main__":
    sys.exit(main())
