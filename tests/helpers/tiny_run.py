"""A tiny model that can be trained, and a runner of `edge-train` in this process."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import msgspec
from cli_runner import Outcome
from tiny_checkpoint import put_json, write_checkpoint
from tiny_gguf import CHATML_TEMPLATE

from converters.hf_to_gguf import load
from converters.tokenizer_json import tokenizer_config, tokenizer_json
from edge_agent.cli.terminal import Terminal
from train_host.cli import main_with

SMALL = ("--max-steps", "6", "--batch-size", "4", "--threads", "1", "--lr", "1e-2", "--r", "4")
"""Options of a run that takes a second or two."""


def write_tiny(directory: Path, family: str) -> Path:
    """A tiny model of `family` with its family's template; returns the directory."""
    write_checkpoint(directory, family)
    config = json.loads((directory / "config.json").read_text())
    if family == "gemma3":
        config["model_type"] = "gemma3_text"
    put_json(directory / "config.json", config)
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    if family in ("llama", "qwen3"):  # the tiny qwen3 has no <think>
        settings["chat_template"] = CHATML_TEMPLATE
    put_json(directory / "tokenizer_config.json", settings)
    return directory


def train(*argv: str | Path, environ: dict[str, str] | None = None) -> Outcome:
    """Run `edge-train sft ARGV --json` on given streams."""
    out, err = io.StringIO(), io.StringIO()
    terminal = Terminal(io.StringIO(), out, err, environ or {})
    code = main_with(["sft", *map(str, argv), "--json"], terminal)
    return Outcome(code, out.getvalue(), err.getvalue())


def log_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def losses_of(run: Path) -> list[float]:
    return [row["loss"] for row in log_of(run) if "loss" in row]


def write_multimodal(directory: Path) -> Path:
    """A tiny multimodal Gemma 3 with random weights, as transformers saves it; needs torch."""
    import torch
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = write_tiny(directory.with_name("text-part"), "gemma3")
    config = json.loads((text / "config.json").read_text())
    kept = {key: config[key] for key in config if key not in ("architectures", "model_type")}
    kept["query_pre_attn_scalar"] = config["head_dim"]
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
              "num_attention_heads": 2, "image_size": 28, "patch_size": 14}  # fmt: skip
    torch.manual_seed(7)
    model = Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=kept, vision_config=vision, mm_tokens_per_image=4)
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("proj.weight"):
                parameter.mul_(6)  # logits that an adapter changes measurably
    model.save_pretrained(directory)
    metadata, _ = load(text)
    for name, document in (("tokenizer", tokenizer_json), ("tokenizer_config", tokenizer_config)):
        content = msgspec.json.encode(document(metadata))
        (directory / f"{name}.json").write_bytes(content)
    return directory
