"""How an adapter is trained: every setting of a run, with bounds, default, help text and flag.

Why it exists: the command line, POST /adapt/run and the trainer must agree, and everything a run
needs to be repeated bit for bit is in `RunSettings`. Flows in: values by name, typed or from JSON.
Flows out: checked settings; their schema, for help texts and the HTTP reference. Imports no NumPy:
the front uses it. Not here: what the trainer is told beside them (messages.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta, Struct, field

from edge_agent.setting import Setting, WrongSetting, settings_of

TargetModule = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TARGET_MODULES: tuple[TargetModule, ...] = get_args(TargetModule)
"""Every linear layer of a block, by PEFT's names."""
ALL_LINEAR = "all-linear"
"""PEFT's word for all of them."""


class RunSettings(Struct, frozen=True):
    """How an adapter is trained. PEFT's names where PEFT has one.

    Bounds, defaults and descriptions are those of the command line and of POST /adapt/run as well.
    `run_settings` checks them; the constructor does not.
    """

    memory_bytes: (
        Annotated[
            int,
            Meta(
                ge=1,
                le=1 << 50,
                description="Memory of its own it may take: 400M [half of the free].",
            ),
        ]
        | None
    ) = None
    """RssAnon of the trainer."""
    hours: (
        Annotated[
            float,
            Meta(
                gt=0,
                le=8760,
                description="Stop after so much training and keep the best adapter.",
                extra_json_schema={"metavar": "H"},
            ),
        ]
        | None
    ) = None
    layers: Annotated[
        str,
        Meta(
            description="Blocks that learn: auto (short trials), all, top:K, or numbers 10,11,14.",
            extra_json_schema={"metavar": "WHICH"},
        ),
    ] = "auto"
    r: Annotated[int, Meta(ge=1, le=512, description="Rank.")] = 8
    lora_alpha: Annotated[
        float, Meta(gt=0, le=65536, description="Scaling of the adapter is lora_alpha / r.")
    ] = 16.0
    lora_dropout: Annotated[
        float, Meta(ge=0, lt=1, description="Share of inputs the adapter does not see in a step.")
    ] = 0.0
    target_modules: Annotated[
        list[TargetModule],
        Meta(
            min_length=1,
            description=f"Linear layers that learn: {ALL_LINEAR}, or some of"
            f" {', '.join(TARGET_MODULES)} [all].",
        ),
    ] = field(default_factory=lambda: list(TARGET_MODULES))
    use_rslora: Annotated[
        bool,
        Meta(
            description="Scaling is lora_alpha / sqrt(r).",
            extra_json_schema={"flag": "--rslora"},
        ),
    ] = False
    learning_rate: Annotated[
        float,
        Meta(gt=0, le=10, description="Peak rate.", extra_json_schema={"flag": "--lr"}),
    ] = 2e-3
    weight_decay: Annotated[float, Meta(ge=0, lt=100, description="AdamW's weight decay.")] = 0.0
    warmup_ratio: Annotated[
        float, Meta(ge=0, le=1, description="Share of the steps in which the rate rises.")
    ] = 0.05
    max_grad_norm: Annotated[
        float, Meta(ge=0, le=1_000_000, description="Longer gradients are shortened; 0 never.")
    ] = 1.0
    epochs: Annotated[
        int,
        Meta(
            ge=1,
            le=10_000,
            description="At most; it ends once every row is answered, or nothing more is learned.",
        ),
    ] = 24
    """The learning rate falls over all of them, and the last tokens of a lesson are learned while
    it is high: with 14, SmolLM2 did not learn 3 of 22 questions; with 24, all by epoch 13."""
    patience: Annotated[
        int,
        Meta(
            ge=1,
            le=10_000,
            description="Epochs without a lower validation loss, or clearly fewer"
            " wrong tokens, before it ends.",
        ),
    ] = 2
    max_length: Annotated[
        int,
        Meta(ge=2, le=1 << 20, description="Tokens of the longest text; longer ones are left out."),
    ] = 512
    batch_tokens: Annotated[
        int,
        Meta(
            ge=2,
            le=1 << 20,
            description="Tokens of a pass, at most; a short lesson gets less.",
        ),
    ] = 512
    gradient_accumulation_steps: Annotated[
        int,
        Meta(
            ge=1,
            le=1 << 20,
            description="Passes a step.",
            extra_json_schema={"flag": "--accumulate"},
        ),
    ] = 1
    validation_share: Annotated[
        float, Meta(ge=0, le=0.9, description="Part of the rows kept back to validate on.")
    ] = 0.1
    checkpoint_steps: Annotated[
        int, Meta(ge=1, le=1 << 20, description="Steps between checkpoints.")
    ] = 20
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1, description="Same seed, same adapter.")] = 1
    n_threads: (
        Annotated[
            int,
            Meta(
                ge=1,
                le=512,
                description="BLAS threads [physical cores].",
                extra_json_schema={"flag": "--threads"},
            ),
        ]
        | None
    ) = None
    """Frozen at the start of a run."""
    device: Annotated[
        Literal["cpu", "cuda"],
        Meta(description="What computes: cpu, or cuda (an NVIDIA GPU, with CuPy installed)."),
    ] = "cpu"
    policy: Annotated[
        Literal["idle", "always", "exclusive"],
        Meta(
            description="When it computes: idle pauses for requests, exclusive answers none.",
            extra_json_schema={"flag": "--while"},
        ),
    ] = "idle"
    rehearsal: Annotated[
        Literal["auto", "kl", "answers", "none"],
        Meta(
            description="What keeps the rest as it is: kl (instruct models stay near themselves),"
            " answers (base models learn general answers), none; auto looks which model it is."
        ),
    ] = "auto"
    rehearsal_weight: (
        Annotated[
            float,
            Meta(gt=0, le=1000, description="Weight of the rehearsal's loss [kl 0.5, answers 1]."),
        ]
        | None
    ) = None
    rehearsal_rows: (
        Annotated[
            int,
            Meta(ge=1, le=10_000, description="Rows that are rehearsed [kl 80, answers 180]."),
        ]
        | None
    ) = None
    audit: Annotated[bool, Meta(description="Leave out rows that look wrong.")] = True


def run_settings(values: Mapping[str, Any], *, is_text: bool = False) -> RunSettings:
    """`values` by name, checked; the rest by default. `is_text`: "8" counts as 8.

    Raises WrongSetting.

    >>> run_settings({"r": 4}).r, run_settings({"lora_alpha": "4"}, is_text=True).lora_alpha
    (4, 4.0)
    """
    for name in values:
        if name not in RunSettings.__struct_fields__:
            known = f"known are {', '.join(RunSettings.__struct_fields__)}"
            raise WrongSetting(name[:40], "there is no such setting", known)
    if "target_modules" in values:
        values = {**values, "target_modules": _target_modules(values["target_modules"])}
    try:
        return msgspec.convert(values, RunSettings, strict=not is_text)
    except msgspec.ValidationError as error:
        why, _, path = str(error).partition(" - at `$.")
        name = path.partition("[")[0].rstrip("`")
        raise WrongSetting(name, why, declared_run_settings()[name].help) from error


def _target_modules(given: Any) -> Any:
    """The modules that PEFT means by these names, each once; what is no text stays as it is.

    PEFT matches the end of a module's name: "self_attn.q_proj" is "q_proj". Raises WrongSetting.

    >>> _target_modules("mlp.up_proj"), len(_target_modules(["all-linear"]))
    (['up_proj'], 7)
    """
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        return given
    found: dict[str, None] = {}
    for text in map(str.strip, texts):
        block, _, module = text.rpartition(".")
        if text == ALL_LINEAR:
            found |= dict.fromkeys(TARGET_MODULES)
        elif module in TARGET_MODULES and block in ("", "self_attn", "mlp"):
            found[module] = None
        else:
            raise WrongSetting("target_modules", *_no_target(text))
    return list(found)


def _no_target(text: str) -> tuple[str, str]:
    """(why, hint) for a name that is none of TARGET_MODULES."""
    known = f"known are {ALL_LINEAR}, {', '.join(TARGET_MODULES)}"
    if text.endswith(("lm_head", "embed_tokens")):
        return f"{text[-60:]} is no linear layer of a block, and only those learn", known
    if ".layers." in f".{text}":
        hint = f"choose blocks by `layers` (--layers 10,11); {known}"
        return f"{text[:60]!r} is the name of a module of one block", hint
    if not set(text).isdisjoint("*?+[](){}|^$\\"):
        return f"{text[:60]!r} is a regular expression, and those are not read", known
    return f"there is no linear layer {text[:60]!r} in a block", known


@cache
def declared_run_settings() -> dict[str, Setting]:
    """Every field of RunSettings by its name, with its flag and help text."""
    return settings_of(msgspec.json.schema(RunSettings)["$defs"]["RunSettings"])
