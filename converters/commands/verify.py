"""edge-convert verify: whether a converted file is the same model as its source."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from converters.commands.options import ThreadOptions
from converters.commands.writing import memory_bytes
from edge_agent.cli.terminal import Terminal
from edge_agent.errors import UsageError

if TYPE_CHECKING:
    from converters.verify import Verdict


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(ThreadOptions):
    a: Annotated[Path, typer.Argument(metavar="A", help="Reference: directory or GGUF file.")]
    b: Annotated[Path, typer.Argument(metavar="B", help="The model that was made of A.")]
    data: Annotated[
        Path | None,
        typer.Option(
            help="Text to compare on, passages separated by blank lines [built-in English, Hindi,"
            " Kannada, code].",
            metavar="FILE",
        ),
    ] = None
    memory: Annotated[
        str | None,
        typer.Option(help="Memory that it may take [what is available].", metavar="SIZE"),
    ] = None


def verify(options: VerifyOptions, terminal: Terminal) -> int:
    """Prove that a conversion kept the model: tokenizer, chat template, bytes and logits.

    Exit status 1 when a gate is missed. A directory is evaluated in torch (pip install
    'edge-agent[host]'), a GGUF file in llama.cpp.

    Examples:
      edge-convert verify ./gemma-3-270m gemma-q8_0.gguf
      edge-convert verify model-f16.gguf model-q4_k_m.gguf --data wiki.txt --json
    """
    from converters.quantizer import How
    from converters.verify import type_of
    from converters.verify import verify as compare
    from converters.verify_logits import VerifyRoom

    for path in (options.a, options.b):
        if not path.exists():
            raise UsageError(f"{path} does not exist", "", "give two models")
    texts = _texts(options.data) if options.data else None
    memory = None if options.memory is None else memory_bytes(options.memory)
    with terminal.progress(counts_bytes=False) as progress:
        how = How(options.threads, progress)
        verdict = compare(options.a, options.b, texts, how, VerifyRoom(memory, terminal.note))
    if options.json:
        terminal.document(asdict(verdict))
    else:
        _print(verdict, type_of(options.b), terminal)
    return 0 if verdict.passed else 1


def _texts(path: Path) -> list[str]:
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--data is {path}", str(error), "give a UTF-8 text file") from None
    return [part for part in text.split("\n\n") if part.strip()]


def _print(verdict: Verdict, type_name: str, terminal: Terminal) -> None:
    def figure(value: float | None) -> str:
        return "-" if value is None else f"{value:.3g}"

    def yes_no(value: bool | None) -> str:
        return "-" if value is None else "yes" if value else "NO"

    gates = verdict.thresholds
    by_design = f", {len(verdict.tokenizer_by_design)} differ by design"
    rows = [
        ("tokenizer equal", yes_no(verdict.tokenizer_equal), f"{verdict.tokenizer_texts} texts"
         + (by_design if verdict.tokenizer_by_design else "")),
        ("chat template equal", yes_no(verdict.template_equal), ""),
        ("bytes are ggml's", yes_no(verdict.bytes_equal), ""),
        ("KL of the weights, mean", figure(verdict.kl_mean), _gate(gates, "kl_mean", "at most")),
        ("KL of the weights, p99", figure(verdict.kl_p99), ""),
        ("KL of the weights, max", figure(verdict.kl_max), ""),
        ("same first choice", figure(verdict.top1_agreement),
         _gate(gates, "top1_agreement", "at least")),
        ("KL as served, mean", figure(verdict.served_kl_mean), ""),
        ("of which by serving alone", figure(verdict.floor_kl_mean), "the floor"),
        ("bits per byte, A and B",
         f"{figure(verdict.bits_per_byte_a)}, {figure(verdict.bits_per_byte_b)}", ""),
    ]  # fmt: skip
    terminal.table((f"{type_name}, {verdict.n_tokens} TOKENS", "FIGURE", "WANTED"), rows)
    for name, reason in verdict.reasons.items():
        terminal.note(f"{name}: {reason}")
    terminal.line("passed" if verdict.passed else "NOT PASSED")


def _gate(gates: dict[str, float], name: str, word: str) -> str:
    return f"{word} {gates[name]:g}" if name in gates else ""
