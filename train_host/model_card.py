"""The README.md of an export: what the model is, its origin, its scores, its licences.

Flows in: the content of export.json, the run's metrics and settings. Flows out: Markdown with the
front matter that model hubs read. Every figure is copied from the run or the export; a figure that
was not measured is named as missing. Not here: measuring.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

UNKNOWN = "not stated"
SCORES = (
    ("bits_per_byte_before", "validation, bits per byte before"),
    ("bits_per_byte", "validation, bits per byte after (best)"),
    ("best_step", "at step"),
    ("first_loss", "training loss, first step"),
    ("final_loss", "training loss, last step"),
    ("steps", "optimizer steps"),
    ("stopped", "ended by"),
    ("train_samples", "rows learned"),
    ("validation_samples", "rows kept for validation"),
    ("supervised_share", "share of tokens that is learned"),
    ("tok_s", "training tokens per second"),
    ("peak_memory_bytes", "peak memory of training, bytes"),
)
COMPARED = ("kl_mean", "kl_max", "top1_agreement", "served_kl_mean", "floor_kl_mean",
            "largest_relative_difference", "answer_loss_base", "answer_loss_trained",
            "answer_loss_served", "answer_loss_adapter", "kept_share")  # fmt: skip


@dataclass(frozen=True)
class Card:
    """The sources of a card: export.json, metrics.json, the settings of run.json."""

    export: Mapping[str, Any]
    metrics: Mapping[str, Any]
    settings: Mapping[str, Any]


def card(source: Card) -> str:
    """The whole file."""
    return "\n".join([*_front_matter(source.export), *_body(source)]) + "\n"


def _front_matter(export: Mapping[str, Any]) -> Iterator[str]:
    yield "---"
    # A JSON string is a YAML string, whatever the licence contains.
    yield f"license: {json.dumps(export['base']['licence'] or 'other')}"
    if export["base"]["licence_link"]:
        yield f"license_link: {json.dumps(export['base']['licence_link'])}"
    yield from ("library_name: gguf", "pipeline_tag: text-generation", "---")


def _body(source: Card) -> Iterator[str]:
    export, model = source.export, source.export["model"]
    yield f"# {export['name']}\n"
    yield (
        f"`{_named(export['base']['origin'])}` fine-tuned with {export['method']} and quantized to"
        f" {model['type']} ({model['bits_per_weight']} bits a weight). Made by `edge-train`.\n"
    )
    yield f"```\nedge-agent pull . && edge-agent chat {model['file'].removesuffix('.gguf')}\n```\n"
    yield from _section("Terms", _terms(export), ("of", "licence"))
    files = [(f"`{f['file']}`", str(f["bytes"]), f"`{f['sha256']}`") for f in export["files"]]
    yield from _section("Files", files, ("file", "bytes", "SHA-256"))
    yield from _section("Scores", _scores(source.metrics), ("figure", "value"))
    yield "Nothing else was measured: no benchmark of knowledge, safety or other languages.\n"
    headers = ("step", "made", "passed", "figures")
    yield from _section("Checked after each step", _stages(export), headers)
    yield from (f"- {note}" for note in export["notes"])
    origins = [
        ("base", f"`{_named(export['base']['origin'])}`, SHA-256 `{export['base']['sha256']}`"),
        ("data", f"`{_named(export['data']['origin'])}`, SHA-256 `{export['data']['sha256']}`"),
        *((f"{key} (version)", str(value)) for key, value in (export["versions"] or {}).items()),
        *((key, _text(value)) for key, value in source.settings.items()),
    ]
    yield from _section("Settings", origins, ("setting", "value"))


def _named(origin: str) -> str:
    """A path by its last part, because the directories of the maker's machine are private.

    >>> _named("/home/me/gemma.gguf"), _named("hf:Qwen/Qwen2.5-0.5B"), _named("blocks 0 of /a/b")
    ('gemma.gguf', 'hf:Qwen/Qwen2.5-0.5B', 'blocks 0 of b')
    """
    if origin.startswith("hf:"):
        return origin
    head, separator, path = origin.rpartition(" of ")
    return head + separator + path.rstrip("/").rpartition("/")[2]


def _terms(export: Mapping[str, Any]) -> list[tuple[str, str]]:
    base, link = export["base"]["licence"] or UNKNOWN, export["base"]["licence_link"]
    return [
        ("the base model, and so this one", f"{base} ({link})" if link else base),
        ("the training rows", export["data"]["licence"] or UNKNOWN),
    ]


def _scores(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [(label, _text(metrics.get(key))) for key, label in SCORES]
    dropped = metrics.get("dropped") or {}
    counts = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
    energy = metrics.get("energy") or {}
    joules = energy.get("joules")
    reason = f"not measured: {energy.get('reason') or 'no sensor'}"
    return [
        *rows,
        ("rows left out", counts or "none"),
        ("energy of training", reason if joules is None else f"{joules:.0f} J"),
    ]


def _stages(export: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for stage in export["stages"]:
        found = stage.get("figures") or {}
        figures = ", ".join(f"{key} {found[key]:.3g}" for key in COMPARED if key in found)
        passed = {True: "yes", False: "NO", None: "not checked"}[stage["passed"]]
        rows.append((stage["stage"], stage["made"], passed, figures or stage.get("reason") or "-"))
    return rows


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "-" if value is None else str(value)


def _section(
    title: str, rows: Sequence[tuple[str, ...]], headers: tuple[str, ...]
) -> Iterator[str]:
    yield f"## {title}\n"
    yield f"| {' | '.join(headers)} |"
    yield f"|{'---|' * len(headers)}"
    yield from (
        f"| {' | '.join(' '.join(cell.replace('|', '/').split()) for cell in row)} |"
        for row in rows
    )
    yield ""
