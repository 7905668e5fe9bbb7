"""The four methods of training, each as a loaded model and the set of weights that learn.

    lora    adapters beside frozen weights of --dtype
    qlora   adapters beside weights that bitsandbytes holds in NF4 (arXiv 2305.14314)
    full    every weight, kept in float32
    qat     every weight, seen through the quantizer of the export (qat.py)

Flows in: a directory and settings. Flows out: a model for TRL, and a PEFT configuration or None.
Weights are read from safetensors only, and no code of the directory runs. Needs torch. Not here:
the training loop (trainer.py), how a directory is made of --model (model_source.py).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from converters.base_model import open_base
from converters.logits import load_transformers
from edge_agent.errors import UsageError
from train_host.settings import SftSettings

NOT_TEXT = r"(.*\.)?(vision_tower|multi_modal_projector)\..*"
"""Names in a multimodal model of what is no part of its language model, as a regular expression."""


def load_model(directory: Path, settings: SftSettings, local_rank: int = 0) -> Any:
    """The model, with `requires_grad` only where it learns. TRL adds the adapters later.

    Raises ConversionError when transformers finds no weights for a part of the model, or when they
    cannot be prepared for quantization-aware training.
    """
    import torch

    is_half = settings.dtype == "bf16" and settings.trains_adapter
    options: dict[str, Any] = {"dtype": torch.bfloat16 if is_half else torch.float32}
    options["attn_implementation"] = settings.attention
    if settings.method == "qlora":
        options["quantization_config"] = nf4(settings)
        if settings.device == "cuda":
            options["device_map"] = {"": local_rank}
    model = load_transformers(directory, **options)
    if settings.method == "qlora":
        keep_trainable(model)
    if not settings.trains_adapter:
        _train_layers(model, settings.layers)
    if settings.qat_type:
        from train_host import qat

        plan = qat.type_plan(directory, settings.qat_type)
        qat.attach(model, plan, threads=settings.threads)
    return model


def check_rank(directory: Path, settings: SftSettings) -> None:
    """Raise UsageError when r is over the rank of a weight: the device refuses such an adapter."""
    places = open_base(directory).placements.values()
    chosen = tuple(f".{module}.weight" for module in settings.target_modules)
    smallest = min((p for p in places if p.source.endswith(chosen)), key=lambda p: min(p.shape))
    if settings.r > min(smallest.shape):
        raise UsageError(
            f"--r is {settings.r}",
            f"{smallest.source} has the shape {list(smallest.shape)}, and so no higher rank than"
            f" {min(smallest.shape)}",
            f"give --r {min(smallest.shape)} or less",
        )


def nf4(settings: SftSettings) -> Any:
    """The quantization of the QLoRA paper: NF4, its scales quantized again, computing in
    --dtype."""
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if settings.dtype == "bf16" else torch.float32,
    )


def keep_trainable(model: Any) -> None:
    """Keep bitsandbytes from packing the weights for inference on a CPU with AVX-512 BF16.

    bitsandbytes 0.50 packs a weight in its first forward pass in evaluation mode, here the first
    validation. The kernel for packed weights has no gradient: training after it would go wrong
    with no more than torch's warning.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def adapter_config(settings: SftSettings, is_multimodal: bool = False) -> Any:
    """PEFT's LoraConfig, for the language model only; None for a method without an adapter."""
    if not settings.trains_adapter:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=settings.r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=settings.target_modules,
        exclude_modules=NOT_TEXT if is_multimodal else None,
        layers_to_transform=settings.layers,
        bias="none",
        task_type="CAUSAL_LM",
    )


def widen_adapter(model: Any) -> None:
    """Make the adapter's weights float32. Call it before the optimizer is made.

    TRL makes those of a quantized base bfloat16, whose 8 bits lose steps smaller than 1/512 of a
    weight.
    """
    import torch

    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.to(torch.float32)


def _train_layers(model: Any, layers: list[int] | None) -> None:
    """Let only these blocks of the language model learn; None: all of it learns."""
    parts = ("",) if layers is None else tuple(f".layers.{layer}." for layer in layers)
    for name, parameter in model.named_parameters():
        is_chosen = any(part in f".{name}" for part in parts)
        parameter.requires_grad_(is_chosen and not re.fullmatch(NOT_TEXT, name))
