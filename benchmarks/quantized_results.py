"""What issue_13485.py found out: a line for each way, type and seed, and the table of them.

Flows in: `Result`s. Flows out: means over seeds, what QAT wins back, Markdown. Pure, but for the
printing. Not here: the trainings.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

TYPES = ("Q4_0", "Q3_K_S")
"""Q3_K_M has no Q3_K in SmolLM2: rows of 576 fall back to Q4_0, down gets Q4_K. Q3_K_S has 30."""
WAYS = {
    "base": "quantized, not trained",
    "lora-f32": "LoRA on the twin, not quantized",
    "a": "LoRA on the twin, merged, quantized",
    "a-adapter": "LoRA on the twin, served as adapter on the quantized twin",
    "b-twin": "LoRA on the quantized twin, merged into the twin, quantized",
    "b-base": "LoRA on the quantized twin, merged into it, quantized again",
    "b-off": "LoRA on the quantized twin, merged into it, scaled off its grid, quantized again",
    "b-q8": "LoRA on the quantized twin, merged into it, quantized to Q8_0",
    "c": "LoRA on the quantized twin, served as its adapter",
    "full-f32": "all weights on the twin, not quantized",
    "full": "all weights on the twin, quantized",
    "d": "QAT: all weights through the quantizer",
}


@dataclass(frozen=True)
class Result:
    """One line of results.jsonl; nats, bits a byte, seconds. `differing`: weights of the file that
    are not those QAT trained (wanted: 0)."""

    model: str
    type: str
    seed: int
    way: str
    loss: float
    bits_per_byte: float
    kl: float | None
    served_loss: float | None
    served_bits_per_byte: float | None
    served_kl: float | None
    floor_kl: float | None
    train_s: float
    differing: int | None = None


def summary(found: Sequence[Result]) -> list[dict[str, Any]]:
    """Means and standard deviations over the seeds, by type and way."""
    rows = []
    for name in ("F32", *TYPES):
        for way, words in WAYS.items():
            same = [r for r in found if r.type == name and r.way == way]
            if same:
                row: dict[str, Any] = {"type": name, "way": way, "words": words, "n": len(same)}
                for key in ("loss", "bits_per_byte", "kl", "served_loss", "served_bits_per_byte",
                            "served_kl", "floor_kl", "train_s"):  # fmt: skip
                    values = [getattr(r, key) for r in same if getattr(r, key) is not None]
                    row[key] = statistics.fmean(values) if values else None
                row["loss_sd"] = statistics.stdev(r.loss for r in same) if len(same) > 1 else None
                rows.append(row)
    return rows


def recovery(found: Sequence[Result]) -> dict[str, dict[str, float]]:
    """Share of the loss that quantizing costs (full - full-f32) which QAT wins back, by type."""
    by_key = {(r.way, r.type, r.seed): r for r in found}
    shares: dict[str, list[tuple[float, float]]] = {}
    for (way, name, seed), trained in by_key.items():
        full, exact = by_key.get(("full", name, seed)), by_key.get(("full-f32", "F32", seed))
        if way == "d" and full and exact and full.served_loss and trained.served_loss:
            lost, served = full.loss - exact.loss, full.served_loss - exact.loss
            pair = (
                (full.loss - trained.loss) / lost,
                (full.served_loss - trained.served_loss) / served,
            )
            shares.setdefault(name, []).append(pair)
    return {
        name: {
            "weights": statistics.fmean(a for a, _ in pairs),
            "served": statistics.fmean(b for _, b in pairs),
            "n": len(pairs),
        }
        for name, pairs in shares.items()
    }


def print_table(model: str, rows: Sequence[dict[str, Any]]) -> None:
    def cell(value: float | None, form: str = ".3f") -> str:
        return "-" if value is None else format(value, form)

    print(f"\n{model} (off-grid twin; held-out answers; means over n seeds)\n")
    print(
        "| type | way | n | loss | sd | bits/byte | served | KL | served KL | floor KL | train s |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        kls = " | ".join(cell(row[key], ".2e") for key in ("kl", "served_kl", "floor_kl"))
        print(
            f"| {row['type']} | {row['way']}: {row['words']} | {row['n']} | {cell(row['loss'])}"
            f" | {cell(row['loss_sd'])} | {cell(row['bits_per_byte'])}"
            f" | {cell(row['served_bits_per_byte'])} | {kls} | {cell(row['train_s'], '.0f')} |"
        )
