"""Does the device learn the lesson: facts it cannot know, asked in other words than those taught?

This program starts a daemon with the base Gemma 3 270M and recipes/lesson. The facts are asked
before; the command line teaches them (`adapt run`, which also runs the gate and activates); they
are asked again of MODEL:lesson; then the adapter is deactivated, and the base must give the same
bytes as before. An answer is right when it contains the fact's key. All answers are at temperature
0, one at a time, with cache_prompt false. Kinds of wording: `taught` (rows of the training split),
`kept back` (rows that the trainer validated on), `held out` (never in the file). Exit status 1
unless: held out before at most 10 %, after at least 60 %; taught at least 90 %; gate passed; bytes
equal.

    .venv/bin/python benchmarks/lesson.py                                # last line: JSON
    .venv/bin/python benchmarks/lesson.py --state-dir STATE --skip-training   # taught there before
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lesson_rows import LANGUAGES, LESSON, Fact, has_key, read_facts
from servers import BenchmarkError, cli, edge_agent, register
from stream_client import Address, ask_json

from edge_agent.adapt.messages import RunSettings
from edge_agent.adapt.trainer.dataset import read_rows, split

MODEL, NAME = "gemma3-270m", "lesson"
TAUGHT, KEPT_BACK, HELD_OUT = "taught", "kept back", "held out"
MOST_BEFORE, LEAST_TAUGHT, LEAST_HELD_OUT = 0.10, 0.90, 0.60
EQUAL_ANSWERS = 20
MAX_TOKENS = 36
"""The lesson's longest answer has 30 tokens, and the base model would not stop by itself."""
ANSWER_S = 120.0


@dataclass(frozen=True)
class Question:
    fact: Fact
    kind: str
    text: str


@dataclass(frozen=True)
class Answer:
    """One answer, and whether it contains the fact. `when`: before or after the lesson."""

    when: str
    kind: str
    fact: str
    language: str
    question: str
    text: str
    is_right: bool


def questions(facts: Iterable[Fact], taught: set[str]) -> Iterator[Question]:
    """Every wording of every fact; `taught` are the questions of the training split."""
    for fact in facts:
        for text in fact.questions:
            yield Question(fact, TAUGHT if text in taught else KEPT_BACK, text)
        yield from (Question(fact, HELD_OUT, text) for text in fact.held_out)


def training_split(data: Path) -> set[str]:
    """The questions on which `adapt run` with its default settings trains."""
    rows, _ = split(read_rows(data / "train.jsonl"), RunSettings().validation_share)
    return {row.messages[0].content for row in rows}


def fewer(asked: Sequence[Question]) -> list[Question]:
    """The held-out wordings and one taught wording per fact: a shorter list for asking the base."""
    first: dict[str, Question] = {}
    for question in asked:
        if question.kind == TAUGHT:
            first.setdefault(question.fact.id, question)
    return [*first.values(), *(question for question in asked if question.kind == HELD_OUT)]


def ask(address: Address, model: str, text: str) -> str:
    """The answer. Raises BenchmarkError when the daemon refuses."""
    messages = [{"role": "user", "content": text}]
    body = {"model": model, "messages": messages, "max_tokens": MAX_TOKENS, "temperature": 0}
    body["cache_prompt"] = False
    status, document = ask_json(address, "/v1/chat/completions", body, ANSWER_S)
    if status != 200:
        raise BenchmarkError(f"{model} answered {text!r} with {status}: {document}")
    return str(document["choices"][0]["message"]["content"])


def ask_all(address: Address, model: str, asked: Sequence[Question], when: str) -> Iterator[Answer]:
    for count, question in enumerate(asked, 1):
        print(f"\r{when}: {count} of {len(asked)}", end="", file=sys.stderr, flush=True)
        fact, text = question.fact, ask(address, model, question.text)
        right = has_key(text, fact.key)
        yield Answer(when, question.kind, fact.id, fact.language, question.text, text, right)
    print(file=sys.stderr)


def share(answers: Iterable[Answer], when: str, kind: str, language: str = "") -> float | None:
    """Share of right answers; None when nothing was asked."""
    found = [
        answer.is_right
        for answer in answers
        if answer.when == when
        and answer.kind == kind
        and (not language or answer.language == language)
    ]
    return sum(found) / len(found) if found else None


def base_answers(address: Address, asked: Sequence[Question]) -> list[str]:
    """The answers of MODEL without an adapter to questions of every language."""
    step = max(1, len(asked) // EQUAL_ANSWERS)
    return [ask(address, MODEL, question.text) for question in asked[::step][:EQUAL_ANSWERS]]


def teach(data: Path, state_dir: Path, more: Sequence[str]) -> dict[str, Any]:
    """The JSON document of `adapt run`.

    Exit status 1 with a document means that the gate refused.
    """
    command = [str(Path(sys.executable).parent / "edge-agent"), "adapt", "run", "--json"]
    command += ["--from", str(data / "train.jsonl"), "--name", NAME, "--model", MODEL]
    command += more
    env = {**os.environ, "EDGE_AGENT_STATE_DIR": str(state_dir)}
    done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    if not done.stdout.strip():
        raise BenchmarkError(f"`{' '.join(command)}` ended with status {done.returncode}")
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def measure(address: Address, args: argparse.Namespace, state_dir: Path) -> dict[str, Any]:
    """The whole lesson. `answers` contains every Answer as a dict."""
    asked = list(questions(read_facts(args.data), training_split(args.data)))
    cli("adapters", "deactivate", "--model", MODEL, "--json", state_dir=state_dir)
    answers = list(ask_all(address, f"{MODEL}:base", fewer(asked), "before"))
    unlearned = base_answers(address, asked)
    if args.skip_training:
        shown = cli("adapters", "show", NAME, "--model", MODEL, "--json", state_dir=state_dir)
        run = json.loads(shown)
        cli("adapters", "activate", NAME, "--model", MODEL, "--force", state_dir=state_dir)
    else:
        run = teach(args.data, state_dir, args.adapt)
    answers += ask_all(address, f"{MODEL}:{NAME}", asked, "after")
    changed = base_answers(address, asked)
    cli("adapters", "deactivate", "--model", MODEL, "--json", state_dir=state_dir)
    again = base_answers(address, asked)
    return {
        "run": run,
        "answers": [asdict(answer) for answer in answers],
        **scores(answers),
        "compared": len(unlearned),
        "changed_while_active": sum(map(str.__ne__, unlearned, changed)),
        "equal_after": sum(map(str.__eq__, unlearned, again)),
    }


def scores(answers: Sequence[Answer]) -> dict[str, Any]:
    """Shares by kind, and the same by language."""
    columns = [("before", TAUGHT), ("before", HELD_OUT)]
    columns += [("after", kind) for kind in (TAUGHT, KEPT_BACK, HELD_OUT)]
    return {
        language or "all": {
            f"{when} {kind}": share(answers, when, kind, language) for when, kind in columns
        }
        for language in ("", *LANGUAGES)
    }


def unmet(report: dict[str, Any]) -> list[str]:
    """The missed targets, in words."""
    whole, gate = report["all"], report["run"].get("gate") or {}
    targets = {
        f"held out before <= {MOST_BEFORE:.0%}": whole["before held out"] <= MOST_BEFORE,
        f"taught >= {LEAST_TAUGHT:.0%}": whole["after taught"] >= LEAST_TAUGHT,
        f"held out after >= {LEAST_HELD_OUT:.0%}": whole["after held out"] >= LEAST_HELD_OUT,
        "gate passed": gate.get("passed") is True,
        "active adapter changed the answers": report["changed_while_active"] > 0,
        "deactivated, the bytes of before": report["equal_after"] == report["compared"],
    }
    return [target for target, is_met in targets.items() if not is_met]


def show(report: dict[str, Any]) -> None:
    columns = list(report["all"])
    print(f"{'right answers':16}" + "".join(f"{column:>18}" for column in columns))
    for key, label in {**LANGUAGES, "all": "all"}.items():
        values = [report[key][column] for column in columns]
        texts = ["-" if value is None else f"{value:.1%}" for value in values]
        print(f"{label:16}" + "".join(f"{text:>18}" for text in texts))
    run = report["run"]
    if "losses" in run:
        print(
            f"trained {run['steps']} steps in {run['train_s']:.0f} s, {run['tok_s']:.0f} tok/s, "
            f"peak {run['peak_rss_anon_bytes'] / 1e6:.0f} MB, blocks {run['layers']}"
        )
    for reason in (run.get("gate") or {}).get("reasons", []):
        print(f"gate: {reason}")
    print(
        f"{report['changed_while_active']} of {report['compared']} answers changed while it was "
        f"active; {report['equal_after']} are the bytes of before after it was deactivated"
    )
    for target in report["unmet"]:
        print(f"missed: {target}")


@contextmanager
def state_directory(given: Path | None) -> Iterator[Path]:
    """`given`, which is kept; or a temporary one."""
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="edge-agent-lesson-") as scratch:
        yield Path(scratch)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=LESSON, help="folder of the lesson")
    parser.add_argument("--state-dir", type=Path, help="keep the state there [a temporary one]")
    parser.add_argument("--skip-training", action="store_true", help=f"ask {MODEL}:{NAME} as it is")
    parser.add_argument("--adapt", type=str.split, default=[], help="more words for `adapt run`")
    parser.add_argument("--answers", type=Path, help="write every answer there as JSON lines")
    args = parser.parse_args()
    try:
        with state_directory(args.state_dir) as state_dir:
            register(f"embedded:{MODEL}", state_dir)
            with edge_agent(state_dir, MODEL) as server:
                report = measure(server.address, args, state_dir)
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    lines = [json.dumps(answer, ensure_ascii=False) for answer in report.pop("answers")]
    if args.answers is not None:
        args.answers.write_text("\n".join(lines) + "\n", encoding="utf-8")
    report |= {"benchmark": "lesson", "model": MODEL, "unmet": unmet(report)}
    show(report)
    print(json.dumps(report))
    return 1 if report["unmet"] else 0


if __name__ == "__main__":
    sys.exit(main())
