"""Options that several edge-convert commands share, and their meaning together.

Flows in: typer's values. Flows out: a TypeRequest and an importance matrix. Not here: the commands.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge_agent.errors import UsageError

if TYPE_CHECKING:
    from converters.imatrix_file import Imatrix
    from edge_agent.llama.type_plan import TypeRequest


@dataclass(frozen=True, kw_only=True)
class JsonOptions:
    """The option of every command whose output other programs read."""

    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class ThreadOptions(JsonOptions):
    """The option of every command that computes."""

    threads: Annotated[
        int | None, typer.Option(help="Threads [all cores].", metavar="N", min=1, max=1024)
    ] = None


@dataclass(frozen=True, kw_only=True)
class TypeOptions(ThreadOptions):
    """The types of the written file's tensors."""

    type: Annotated[
        str,
        typer.Option(
            help="f32, f16, bf16, q8_0, q6_k, q5_k_m, q4_k_m, q4_0, ... as llama-quantize names"
            " them, or auto: the largest that fits --memory.",
            metavar="TYPE",
        ),
    ] = "q8_0"
    memory: Annotated[
        str | None,
        typer.Option(help="Memory of the board, for --type auto: 4G, 3500M.", metavar="SIZE"),
    ] = None
    ctx: Annotated[
        int,
        typer.Option(
            help="Context that must also fit, for --type auto.", metavar="N", min=256, max=1 << 24
        ),
    ] = 4096
    tensor_type: Annotated[
        list[str] | None,
        typer.Option(help="Type of tensors by regular expression; repeatable.", metavar="RE=TYPE"),
    ] = None
    token_embedding_type: Annotated[
        str | None, typer.Option(help="Type of token_embd.weight.", metavar="TYPE")
    ] = None
    output_tensor_type: Annotated[
        str | None, typer.Option(help="Type of the output head.", metavar="TYPE")
    ] = None
    imatrix: Annotated[
        Path | None,
        typer.Option(help="Importance matrix (`edge-convert imatrix`).", metavar="FILE"),
    ] = None


def type_request(options: TypeOptions) -> tuple[TypeRequest, Imatrix | None]:
    """The requested types and the importance matrix. Raises UsageError.

    `--type auto` stays as the file type AUTO, for writing.py to choose.
    """
    from converters.imatrix_file import read_imatrix
    from edge_agent.llama.type_plan import FILE_TYPES, TypeRequest

    name = options.type.upper()
    if name not in (*FILE_TYPES, "AUTO"):
        known = ", ".join(known.lower() for known in FILE_TYPES)
        raise UsageError(f"--type is {options.type!r}", "llama.cpp has no such type", known)
    imatrix = read_imatrix(options.imatrix) if options.imatrix else None
    request = TypeRequest(
        name,
        tensor_type(options.token_embedding_type),
        tensor_type(options.output_tensor_type),
        tuple(_override(text) for text in options.tensor_type or ()),
        imatrix.importance() if imatrix else {},
    )
    return request, imatrix


def tensor_type(name: str | None) -> str | None:
    """The name in ggml's spelling. Raises UsageError for a type that ggml does not have."""
    from edge_agent.llama.ggml import TYPE_IDS

    if name is None or name.upper() in TYPE_IDS:
        return name and name.upper()
    known = ", ".join(known.lower() for known in TYPE_IDS)
    raise UsageError(f"there is no tensor type {name!r}", "", f"known are {known}")


def _override(text: str) -> tuple[str, str]:
    """(regular expression, type) of one --tensor-type. Raises UsageError."""
    pattern, separator, name = text.rpartition("=")
    if not separator or not pattern:
        raise UsageError(
            f"--tensor-type is {text!r}", "it is no RE=TYPE", "for example ffn_down=q6_k"
        )
    return pattern, str(tensor_type(name))
