"""Started twice by torchrun: a tiny model in shards, and unsharded, take the same three steps.

FSDP2's `fully_shard` over gloo is used without accelerate, which turns FSDP into DDP on a
processor. The first process prints the losses of both. This is no test by itself:
tests/train_host/test_sft_distributed.py starts it.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import LlamaConfig, LlamaForCausalLM

STEPS = 3


def new_model() -> Any:
    torch.manual_seed(1)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads))


def batch_of(step: int) -> Any:
    """Four rows, of which each process takes two."""
    return torch.randint(0, 64, (4, 16), generator=torch.Generator().manual_seed(step))


def losses(model: Any, rank: int | None) -> list[float]:
    """`rank` None: this process takes the whole batch."""
    optimizer, found = torch.optim.AdamW(model.parameters(), lr=1e-2), []
    for step in range(STEPS):
        rows = batch_of(step)
        rows = rows if rank is None else rows[2 * rank : 2 * rank + 2]
        loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        mean = loss.detach().clone()
        if rank is not None:
            dist.all_reduce(mean)
            mean /= dist.get_world_size()
        found.append(mean.item())
    return found


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, mesh = dist.get_rank(), init_device_mesh("cpu", (dist.get_world_size(),))
    model = new_model()
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    local = sum(p.to_local().numel() for p in model.parameters())
    sharded = losses(model, rank)
    if rank == 0:
        whole = new_model()
        document = {
            "sharded": sharded,
            "whole": losses(whole, None),
            "local_share": local / sum(p.numel() for p in whole.parameters()),
        }
        sys.stdout.write(json.dumps(document) + "\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
