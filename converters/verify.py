"""Whether B is the same model as A: tokenizer, template, weights, and the loss that serving adds.

Flows in: two models, each a Hugging Face directory or a GGUF file; A is the reference. Flows out: a
Verdict with figures, thresholds and reasons. Logits are compared twice. (a) The weights alone: both
models in float32, against gates that depend on B's type. (b) B as it is served, beside a floor: B
as served against B's own dequantized weights, because ggml also quantizes activations and no
converter can avoid that. Not here: evaluating the models (verify_logits.py), what a difference
means for answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from converters.divergence import Divergence
from converters.logits import WINDOW
from converters.quantizer import How
from converters.sample_texts import PASSAGES
from converters.text_codec import TextCodec, open_codec
from converters.verify_bytes import compare_bytes
from converters.verify_logits import LogitFigures, VerifyRoom, Window, compare_logits
from converters.verify_tokenizer import TokenizerVerdict, compare_templates, compare_tokenizers
from edge_agent.errors import ConversionError
from edge_agent.gguf.model_file import read_gguf

GATES = {"F32": 1e-5, "F16": 1e-4, "BF16": 1e-3, "Q8_0": 5e-3}
"""B's type -> largest mean KL of (a) in nats. Types with fewer bits are reported and not judged."""
F32_TOP1 = 0.999


@dataclass(frozen=True)
class Verdict:
    """The document of `verify --json`. kl_* are of (a), in nats. A None has its reason in
    `reasons`."""

    kl_mean: float | None
    kl_p99: float | None
    kl_max: float | None
    top1_agreement: float | None
    bits_per_byte_a: float | None
    bits_per_byte_b: float | None
    served_kl_mean: float | None
    floor_kl_mean: float | None
    tokenizer_equal: bool
    template_equal: bool | None
    n_tokens: int
    thresholds: dict[str, float]
    passed: bool
    reasons: dict[str, str]
    bytes_equal: bool | None = None
    tokenizer_texts: int = 0
    tokenizer_differences: tuple[str, ...] = ()
    tokenizer_by_design: tuple[str, ...] = ()


def verify(
    a: Path, b: Path, texts: Sequence[str] | None, how: How, limits: VerifyRoom | None = None
) -> Verdict:
    """Compare B with the reference A. Raises ConversionError, ModelFormatError.

    Example: `verify(Path("gemma-3-270m"), Path("gemma-q8_0.gguf"), None, How()).passed`
    """
    reasons: dict[str, str] = {}
    with ExitStack() as stack:
        codecs = [open_codec(path) for path in (a, b)]
        for codec in codecs:
            stack.callback(codec.close)
        how.progress("comparing tokenizers", None, None)
        tokenizers = compare_tokenizers(codecs[0], codecs[1], texts or ())
        template_equal, reason = compare_templates(codecs[0], codecs[1])
        if reason:
            reasons["template_equal"] = reason
        found = _windows(codecs[0], texts or PASSAGES.values(), is_sample=not texts)
        windows = [Window(tokens, codecs[0].n_bytes(tokens[1:])) for tokens in found]
    if not windows:
        raise ConversionError(
            "there is nothing to compare on", "no text has two tokens", "give more text with --data"
        )
    how.progress("comparing bytes", None, None)
    bytes_equal, reason = compare_bytes(a, b)
    if reason:
        reasons["bytes_equal"] = reason
    figures = compare_logits(a, b, windows, how, limits or VerifyRoom())
    return _verdict(type_of(b), figures, tokenizers, (template_equal, bytes_equal), reasons)


def type_of(path: Path) -> str:
    """F32, F16, Q8_0, Q4_K_M, ... of a file or directory."""
    if not path.is_dir():
        return read_gguf(path).quantization
    from converters.checkpoint import open_checkpoint

    dtypes = {tensor.dtype for tensor in open_checkpoint(path).tensors.values()}
    return next((name for name in ("BF16", "F16", "F32") if name in dtypes), "F32")


def _windows(codec: TextCodec, texts: Iterable[str], *, is_sample: bool) -> Iterator[list[int]]:
    """Pieces of at most WINDOW tokens; of our own samples only the first piece, to save time."""
    for text in texts:
        tokens = codec.encode(text)
        for start in range(0, WINDOW if is_sample else len(tokens), WINDOW):
            window = tokens[start : start + WINDOW]
            if len(window) > 1:
                yield window


def _verdict(
    type_name: str,
    figures: LogitFigures,
    tokenizers: TokenizerVerdict,
    equalities: tuple[bool | None, bool | None],
    reasons: dict[str, str],
) -> Verdict:
    weights, (template_equal, bytes_equal) = figures.weights, equalities
    thresholds = {"kl_mean": GATES[type_name]} if type_name in GATES else {}
    if type_name == "F32":
        thresholds["top1_agreement"] = F32_TOP1
    if not thresholds:
        reasons["thresholds"] = f"{type_name} has no gate: its figures are reported, not judged"
    if not figures.served.kl:
        reasons["served_kl_mean"] = reasons["floor_kl_mean"] = "B is no GGUF file: it is not served"
    failures = list(_failures(weights, thresholds, tokenizers, equalities))
    if failures:
        reasons["passed"] = "; ".join(failures)
    return Verdict(
        kl_mean=weights.mean,
        kl_p99=weights.p99,
        kl_max=weights.maximum,
        top1_agreement=weights.top1_agreement,
        bits_per_byte_a=figures.bits_a.value,
        bits_per_byte_b=figures.bits_b.value,
        served_kl_mean=figures.served.mean if figures.served.kl else None,
        floor_kl_mean=figures.floor.mean if figures.floor.kl else None,
        tokenizer_equal=tokenizers.is_equal,
        template_equal=template_equal,
        n_tokens=figures.n_tokens,
        thresholds=thresholds,
        passed=not failures,
        reasons=reasons,
        bytes_equal=bytes_equal,
        tokenizer_texts=tokenizers.n_texts,
        tokenizer_differences=tokenizers.differences,
        tokenizer_by_design=tokenizers.by_design,
    )


def _failures(
    weights: Divergence,
    thresholds: dict[str, float],
    tokenizers: TokenizerVerdict,
    equalities: tuple[bool | None, bool | None],
) -> Iterator[str]:
    if "kl_mean" in thresholds and not weights.mean <= thresholds["kl_mean"]:  # NaN fails
        yield f"kl_mean {weights.mean:.2e} is over {thresholds['kl_mean']:.0e}"
    if "top1_agreement" in thresholds and not weights.top1_agreement >= F32_TOP1:
        yield f"top1_agreement {weights.top1_agreement:.4f} is below {F32_TOP1}"
    if not tokenizers.is_equal:
        yield f"the tokenizers differ on {len(tokenizers.differences)} texts"
    if equalities[0] is False:
        yield "the chat templates differ"
    if equalities[1] is False:
        yield "some tensors are not what ggml makes of the source"
