"""Is a file exported after quantization-aware training what was trained, and at what cost?

Flows in: a Hugging Face directory and file types. For each type: every weight is fake-quantized,
changed as a training step would change it, written as float32, exported, and compared bit for bit.
Flows out: the number of differing weights (target: 0), the seconds to quantize every weight once,
and the KL that serving adds by quantizing activations (the floor). Not here: learning.

    HOST/bin/python benchmarks/qat_identity.py smol-twin --types q4_0 q8_0 q4_k_m
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import transformers

from converters import hf_to_gguf
from converters.gguf_output import write_model
from converters.quantizer import How
from converters.verify import verify
from edge_agent.llama.type_plan import TypeRequest
from train_host import qat

NOISE = 0.01
"""Change of each weight as a share of its matrix's standard deviation."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--types", nargs="+", default=["q4_0", "q8_0", "q4_k_m"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-floor", action="store_true", help="only bits and seconds")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    rows = []
    for name in arguments.types:
        rows.append(identity(arguments.directory, name, arguments))
        print("   ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    is_met = all(row["differing_weights"] == 0 for row in rows)
    print(json.dumps({"model": arguments.directory.name, "rows": rows, "met": is_met}))
    return 0 if is_met else 1


def identity(directory: Path, name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    model = load(directory)
    plan = qat.type_plan(directory, name)
    names = qat.attach(model, plan, threads=arguments.threads)
    seconds = [quantize_seconds(model, step) for step in range(2)]
    with tempfile.TemporaryDirectory() as scratch:
        latent, gguf = Path(scratch) / "latent", Path(scratch) / "model.gguf"
        qat.write_latent(model, directory, latent)
        write_model(gguf, *hf_to_gguf.load(latent), TypeRequest(name.upper()), How())
        found: dict[str, Any] = {
            "type": name,
            "weights": sum(w.size for w in qat.quantized_weights(model).values()),
            "differing_weights": sum(qat.differences(model, gguf).values()),
            "tensors": dict(Counter(plan[n] for n in names)),
            "quantize_s": round(min(seconds), 2),
            "threads": arguments.threads,
        }
        del model
        if not arguments.no_floor:
            verdict = verify(latent, gguf, None, How(arguments.threads))
            found["kl_of_quantizing_latent"] = verdict.kl_mean
            found["kl_served"] = verdict.served_kl_mean
            found["kl_floor"] = verdict.floor_kl_mean
    return found


def load(directory: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, local_files_only=True
    )


def quantize_seconds(model: Any, step: int) -> float:
    """Seconds to quantize, after a step that changes every weight a little."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.add_(noise, alpha=NOISE * float(weight.std()))
    began_s = time.monotonic()
    qat.quantized_weights(model)
    return time.monotonic() - began_s


if __name__ == "__main__":
    sys.exit(main())
