"""The peer of adapt_step.py: the same steps in torch, transformers and peft, in float32 on the CPU.

Flows in: the same job (adapt.py writes it): a Hugging Face directory, or the sizes of a Gemma 3
with random weights; the blocks that get an adapter, rows, threads. Flows out: one line of JSON. The
texts of a row are a batch, so nothing is padded; optimizer, clipping and settings are the
trainer's; the attention is transformers' default. A job of adapt_mixed.py has packed rows with
weights and stored distributions instead: the texts of a row stand behind each other, kept apart by
the mask, and logits are computed at the supervised positions only, as ours are. Imports nothing of
edge_agent.

Needs torch, transformers and peft; run by adapt.py with its --python.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers

MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LEARNING_RATE, MAX_GRAD_NORM = 2e-3, 1.0
TAIL_FLOOR = 1e-6
SGEMM_SIZES = (2048, 3072)
SGEMM_REPEATS = 4


def main() -> int:
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(job["n_threads"])
    torch.manual_seed(1)
    transformers.logging.set_verbosity_error()
    before = sgemm_flops_s()
    began_s = time.monotonic()
    found = (mixed_steps if "packed" in job else steps)(job, model(job))
    found["window_s"] = began_s, time.monotonic()
    best = max(before, sgemm_flops_s())
    found |= {"sgemm_flops_s": best, "attention": job["attention"] or "default"}
    print(json.dumps({**found, "torch": torch.__version__, "peft": peft.__version__}))
    return 0


def sgemm_flops_s() -> float:
    best = 0.0
    for n in SGEMM_SIZES:
        a, out = torch.ones(n, n), torch.empty(n, n)
        for _ in range(SGEMM_REPEATS):
            began_s = time.perf_counter()
            torch.mm(a, a, out=out)
            best = max(best, 2.0 * n**3 / (time.perf_counter() - began_s))
    return best


def model(job: dict[str, Any]) -> Any:
    """The model with adapters, ready to learn."""
    attention = {"attn_implementation": job["attention"]} if job["attention"] else {}
    if job["hf"]:
        base = transformers.AutoModelForCausalLM.from_pretrained(
            job["hf"], dtype=torch.float32, **attention
        )
    else:
        config = transformers.Gemma3TextConfig(**job["config"], **attention)
        base = transformers.Gemma3ForCausalLM(config).float()
    base.config.use_cache = False
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=job["r"],
        lora_alpha=16,
        lora_dropout=0.0,
        target_modules=MODULES,
        layers_to_transform=job["blocks"],
    )
    return peft.get_peft_model(base, settings).train()


def steps(job: dict[str, Any], training_step: Any) -> dict[str, Any]:
    """As adapt_step.py's; the first step is not timed."""
    trained = [value for value in training_step.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0)
    walls, processor, losses = [], [], []
    for row in job["rows"]:
        began_s, used_s = time.perf_counter(), time.process_time()
        ids = torch.tensor(row)
        labels = ids.clone()
        labels[:, : ids.shape[1] - round(job["supervised"] * ids.shape[1])] = -100
        optimizer.zero_grad()
        loss = training_step(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, MAX_GRAD_NORM)
        optimizer.step()
        losses.append(float(loss))
        walls.append(time.perf_counter() - began_s)
        processor.append(time.process_time() - used_s)
    return {"step_s": walls[1:], "cpu_s": processor[1:], "losses": losses, "tokens": ids.numel(),
            "n_trained": sum(value.numel() for value in trained)}  # fmt: skip


def mixed_steps(job: dict[str, Any], training_step: Any) -> dict[str, Any]:
    """As `steps`, from the same matrices as ours, with our rates, on the packed rows of the job."""
    with np.load(job["packed"]) as stored:
        arrays = {name: stored[name] for name in stored.files}
    start(training_step, arrays)
    trained = [value for value in training_step.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0)
    walls, processor, losses, tokens = [], [], [], []
    for number, rate in enumerate(job["rates"]):
        prefix = f"{number}."
        row = {name.removeprefix(prefix): torch.from_numpy(value)
               for name, value in arrays.items() if name.startswith(prefix)}  # fmt: skip
        began_s, used_s = time.perf_counter(), time.process_time()
        optimizer.zero_grad()
        found = mixed_losses(training_step, row, job["loss_dtype"])
        (found * row["weights"]).sum().div(job["n_lesson"][number]).backward()
        torch.nn.utils.clip_grad_norm_(trained, MAX_GRAD_NORM)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        losses.append(found.detach().split([job["n_lesson"][number], len(found)
                                            - job["n_lesson"][number]]))  # fmt: skip
        tokens.append(len(row["tokens"]))
        walls.append(time.perf_counter() - began_s)
        processor.append(time.process_time() - used_s)
    means = [[float(part.mean()) for part in parts] for parts in losses]
    return {"step_s": walls[1:], "cpu_s": processor[1:], "losses": [one for one, _ in means],
            "rehearsal_losses": [two for _, two in means], "tokens": max(tokens),
            "n_trained": sum(value.numel() for value in trained)}  # fmt: skip


def start(training_step: Any, arrays: dict[str, Any]) -> None:
    """Take our initial A for every adapter, by `LAYER.MODULE`; B is zero on both sides."""
    for name, module in training_step.named_modules():
        layer, _, rest = name.rpartition(".layers.")[2].partition(".")
        key = f"{layer}.{rest.rpartition('.')[2]}.a"
        if hasattr(module, "lora_A") and key in arrays:
            with torch.no_grad():
                module.lora_A["default"].weight.copy_(torch.from_numpy(arrays.pop(key)))
    left = [name for name in arrays if name.endswith(".a")]
    if left:
        raise SystemExit(f"peft has no adapter for {left[:3]}")


def mixed_losses(training_step: Any, row: dict[str, Any], loss_dtype: str) -> Any:
    """The loss at each supervised position: cross-entropy, or KL(q || p) over the stored tokens and
    the tail at the positions `places`."""
    text = torch.repeat_interleave(torch.arange(len(row["lengths"])), row["lengths"])
    first = torch.cumsum(row["lengths"], 0) - row["lengths"]
    at = torch.arange(len(text))
    visible = (text[:, None] == text) & (at[:, None] >= at)
    mask = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
    supervised = torch.nonzero(row["targets"] >= 0)[:, 0]
    logits = training_step(
        input_ids=row["tokens"][None],
        attention_mask=mask[None, None],
        position_ids=(at - first[text])[None],
        logits_to_keep=supervised,
    ).logits[0]
    log_p = torch.log_softmax(logits.to(getattr(torch, loss_dtype)), dim=-1)
    losses = -log_p.gather(1, row["targets"][supervised][:, None])[:, 0]
    kept, q = log_p[row["places"][:, None], row["ids"]], row["q"].to(log_p.dtype)
    q_rest = (1 - q.sum(1)).clamp(min=0)
    p_rest = (1 - kept.exp().sum(1)).clamp(min=TAIL_FLOOR)
    divergence = (torch.xlogy(q, q) - q * kept).sum(1)
    divergence += torch.xlogy(q_rest, q_rest) - q_rest * p_rest.log()
    return losses.index_copy(0, row["places"], divergence)


if __name__ == "__main__":
    sys.exit(main())
