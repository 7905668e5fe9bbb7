"""The flags of `bench` and what they ask for: llama-bench's lists and ranges, as a plan.

Flows in: flags. Flows out: a TrialPlan, and one EngineSettings for every combination of the
engine's lists. Not here: carrying the plan out (edge_agent/bench/trials.py).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from edge_agent.cli.options import Options, complete_model
from edge_agent.errors import UsageError

if TYPE_CHECKING:
    from edge_agent.bench.trials import Trial, TrialPlan
    from edge_agent.records import EngineSettings, PowerChoice

CHAT_N_CTX = 2048
_ROUND = 256
_RANGE = re.compile(r"(\d+)-(\d+)(?:([+*])(\d+))?")


def _option(*names: str, **details: Any) -> Any:
    return typer.Option(*names, show_default=True, **details)


@dataclass(frozen=True, kw_only=True)
class BenchOptions(Options):
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...",
            help="Registered models or .gguf files [all registered].",
            autocompletion=complete_model,
        ),
    ] = None
    scenario: Annotated[str, _option(help="raw, chat or all.", metavar="NAME")] = "all"
    n_prompt: Annotated[str, _option("-p", "--n-prompt", metavar="LIST", help="Prefill tests.")] = (
        "512"
    )
    n_gen: Annotated[str, _option("-n", "--n-gen", metavar="LIST", help="Decode tests.")] = "128"
    pg: Annotated[
        list[str] | None,
        typer.Option("-pg", metavar="PP,TG", help="Prefill and decode timed together; repeatable."),
    ] = None
    n_depth: Annotated[
        str, _option("-d", "--n-depth", metavar="LIST", help="Tokens in the cache beforehand.")
    ] = "0"
    repetitions: Annotated[int, _option("-r", "--repetitions", min=1, help="Runs of each.")] = 5
    threads: Annotated[
        str | None, typer.Option("-t", "--threads", metavar="LIST", help="Threads [cores].")
    ] = None
    batch_size: Annotated[
        str, _option("-b", "--batch-size", metavar="LIST", help="Prompt tokens a call.")
    ] = "512"
    type_k: Annotated[
        str, _option("-ctk", "--cache-type-k", metavar="LIST", help="f16, q8_0, f32.")
    ] = "f16"
    type_v: Annotated[
        str, _option("-ctv", "--cache-type-v", metavar="LIST", help="f16, q8_0, f32.")
    ] = "f16"
    flash_attn: Annotated[
        str, _option("-fa", "--flash-attn", metavar="LIST", help="auto, on, off.")
    ] = "auto"
    n_gpu_layers: Annotated[
        int, _option("-ngl", "--n-gpu-layers", help="Layers on the GPU; -1 all.")
    ] = -1
    lora: Annotated[list[str] | None, typer.Option(metavar="FILE", help="Adapter, repeatable.")] = (
        None
    )
    languages: Annotated[str, _option(metavar="LIST", help="Of the chats: en, hi, kn.")] = (
        "en,hi,kn"
    )
    n_predict: Annotated[int, _option(min=2, help="Tokens of each chat answer.")] = 64
    concurrency: Annotated[str, _option(metavar="LIST", help="Chats at the same time.")] = "1"
    warmup: Annotated[bool, _option("--warmup/--no-warmup", help="One run before each test.")] = (
        True
    )
    delay: Annotated[float, _option(metavar="S", min=0, help="Pause before each run.")] = 0.0
    idle_s: Annotated[float, _option(metavar="S", min=0, help="Idle baseline; 0 none.")] = 10.0
    cool_down_to: Annotated[
        float | None,
        typer.Option(metavar="CELSIUS", help="Wait for it before each test [start + 3]."),
    ] = None
    cool_down_s: Annotated[float, _option(metavar="S", min=0, help="Wait at most so long.")] = 120.0
    daemon: Annotated[
        bool, typer.Option("--daemon", help="Ask the running daemon instead of a worker.")
    ] = False
    sensors_root: Annotated[
        Path, _option(metavar="DIR", help="Read sensors below DIR instead of /.")
    ] = Path("/")
    power_source: Annotated[
        str, _option(metavar="NAME", help="auto, ina3221, rapl, jtop, none.")
    ] = "auto"
    board_name: Annotated[
        str | None, typer.Option(metavar="NAME", help="This machine in reports [its host name].")
    ] = None
    store: Annotated[bool, _option("--store/--no-store", help="Keep the documents.")] = True
    jsonl: Annotated[bool, typer.Option("--jsonl", help="One document a line on stdout.")] = False
    csv: Annotated[bool, typer.Option("--csv", help="CSV on stdout.")] = False
    md: Annotated[bool, typer.Option("--md", help="A Markdown table on stdout.")] = False


def plan_of(options: BenchOptions) -> TrialPlan:
    """The tests that the flags ask for, and how often and when they run. Raises UsageError."""
    from edge_agent.bench.trials import TrialPlan

    tests = [*_raw_tests(options), *_chat_tests(options)]
    if options.scenario not in ("raw", "chat", "all"):
        raise UsageError(f"--scenario is {options.scenario!r}", "", "give raw, chat or all")
    if not tests:
        raise UsageError("there is nothing to measure", "every list is empty or 0", "see --help")
    return TrialPlan(
        tests=tuple(tests),
        repetitions=options.repetitions,
        warmup=options.warmup,
        delay_s=options.delay,
        idle_s=options.idle_s,
        cool_down_to_celsius=options.cool_down_to,
        cool_down_s=options.cool_down_s,
    )


def _raw_tests(options: BenchOptions) -> Iterator[Trial]:
    from edge_agent.bench.trials import Trial

    if options.scenario == "chat":
        return
    depths = [0] if options.daemon else numbers("--n-depth", options.n_depth)
    for depth in depths:
        for n in numbers("--n-prompt", options.n_prompt):
            if n:
                yield Trial("prefill", n_prompt=n, n_depth=depth)
        for n in numbers("--n-gen", options.n_gen):
            if n:
                yield Trial("decode", n_gen=n, n_depth=depth)
        for pair in options.pg or []:
            both = numbers("-pg", pair)
            if len(both) != 2 or not all(both):
                raise UsageError(f"-pg is {pair!r}", "it takes two numbers", "give -pg 512,128")
            yield Trial("prefill+decode", n_prompt=both[0], n_gen=both[1], n_depth=depth)


def _chat_tests(options: BenchOptions) -> Iterator[Trial]:
    from edge_agent.bench.prompts import LANGUAGES
    from edge_agent.bench.trials import Trial

    if options.scenario == "raw":
        return
    for language in words("--languages", options.languages, tuple(LANGUAGES)):
        for concurrency in numbers("--concurrency", options.concurrency):
            if not 1 <= concurrency <= 64:
                raise UsageError("--concurrency takes numbers from 1 to 64", str(concurrency))
            yield Trial("chat", n_gen=options.n_predict, language=language, concurrency=concurrency)


def power_choice(options: BenchOptions) -> PowerChoice:
    """Raises UsageError for a source that does not exist."""
    from edge_agent.records import PowerChoice

    for choice in get_args(PowerChoice):
        if options.power_source == choice:
            return choice  # type: ignore[no-any-return]
    hint = f"give one of {', '.join(get_args(PowerChoice))}"
    raise UsageError(f"--power-source is {options.power_source!r}", "there is none", hint)


def numbers(flag: str, text: str) -> list[int]:
    """The numbers of a comma-separated list; FIRST-LAST+STEP and FIRST-LAST*FACTOR are ranges.

    `flag` is named by the UsageError that a wrong list raises.

    >>> numbers("-p", "0,128-512*2,64-128+32")
    [0, 128, 256, 512, 64, 96, 128]
    """
    found: list[int] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match:
            first, last, sign, step = match.groups()
            found += _steps(flag, int(first), int(last), sign or "+", int(step or 1))
        elif part.strip().isdigit():
            found.append(int(part))
        else:
            hint = "give numbers such as 128,512 or 128-1024*2"
            raise UsageError(f"{flag} is {text!r}", f"{part!r} is no number", hint)
    return found


def _steps(flag: str, first: int, last: int, sign: str, step: int) -> list[int]:
    if first > last or step < 1 or (sign == "*" and (step < 2 or first < 1)):
        raise UsageError(f"{flag} has a range that never ends", f"{first}-{last}{sign}{step}")
    values = [first]
    while (value := values[-1] + step if sign == "+" else values[-1] * step) <= last:
        values.append(value)
    return values


def words(flag: str, text: str, known: Sequence[str]) -> list[str]:
    """A list of words out of `known`. Raises UsageError."""
    found = [part.strip() for part in text.split(",")]
    for word in found:
        if word not in known:
            raise UsageError(f"{flag} is {text!r}", f"{word!r} is none of {', '.join(known)}")
    return found


def engine_settings(options: BenchOptions, plan: TrialPlan) -> list[EngineSettings]:
    """One per combination of the engine's lists; the context holds the largest test of the plan."""
    from edge_agent.records import EngineSettings, FlashAttention, KvType

    needed = max(test.n_prompt + test.n_gen + test.n_depth for test in plan.tests)
    if any(test.scenario == "chat" for test in plan.tests):
        needed = max(needed, CHAT_N_CTX)
    kv_types = get_args(KvType)
    lists = itertools.product(
        numbers("--threads", options.threads) if options.threads else [None],
        numbers("--batch-size", options.batch_size),
        words("--cache-type-k", options.type_k, kv_types),
        words("--cache-type-v", options.type_v, kv_types),
        words("--flash-attn", options.flash_attn, get_args(FlashAttention)),
    )
    return [
        EngineSettings(
            n_ctx=-(-needed // _ROUND) * _ROUND,
            slots=max(test.concurrency for test in plan.tests),
            n_threads=n_threads,
            n_batch=max(1, n_batch),
            type_k=type_k,  # type: ignore[arg-type]
            type_v=type_v,  # type: ignore[arg-type]
            flash_attn=flash_attn,  # type: ignore[arg-type]
            n_gpu_layers=options.n_gpu_layers,
            adapters=[str(Path(path).absolute()) for path in options.lora or []],
        )
        for n_threads, n_batch, type_k, type_v, flash_attn in lists
    ]
