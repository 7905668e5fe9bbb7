"""The `edge-convert` command: assembles its subcommands.

Flows in: sys.argv, the process's streams and environment. Flows out: an exit code
(edge_agent/cli/program.py). Not here: the commands (commands/). Each command imports the heavy
libraries that it needs by itself, so that --help is quick.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

import typer

from converters.commands.hf import HfOptions, hf
from converters.commands.imatrix import ImatrixOptions, imatrix
from converters.commands.inspect import InspectOptions, inspect
from converters.commands.lora import LoraOptions, lora
from converters.commands.merge import MergeOptions, merge
from converters.commands.quantize import QuantizeOptions, quantize
from converters.commands.to_hf import ToHfOptions, to_hf
from converters.commands.verify import VerifyOptions, verify
from edge_agent.cli.options import add_command
from edge_agent.cli.program import new_app, run_program
from edge_agent.cli.terminal import Terminal, process_terminal

EPILOG = """\b
Examples:
  edge-convert hf ./my-finetune -o mine.gguf --type q4_k_m
  edge-convert inspect mine.gguf
"""


def build_app() -> typer.Typer:
    """The typer app with every command, in the order of a conversion."""
    text = "Turn Hugging Face checkpoints and LoRA adapters into GGUF files, and check them."
    app = new_app("edge-convert", text, EPILOG)
    add_command(app, "hf", HfOptions, hf)
    add_command(app, "quantize", QuantizeOptions, quantize)
    add_command(app, "imatrix", ImatrixOptions, imatrix)
    add_command(app, "lora", LoraOptions, lora)
    add_command(app, "merge", MergeOptions, merge)
    add_command(app, "to-hf", ToHfOptions, to_hf)
    add_command(app, "verify", VerifyOptions, verify)
    add_command(app, "inspect", InspectOptions, inspect)
    return app


def main_with(argv: Sequence[str], terminal: Terminal) -> int:
    """Run one command and return its exit code: 0, 1 for a failure, 2 for wrong usage."""
    return run_program(build_app, "edge-convert", argv, terminal)


def main() -> None:
    """Entry point of the `edge-convert` script."""
    # llama.cpp logs a warning about every vocabulary.
    logging.getLogger("edge_agent").setLevel(logging.ERROR)
    sys.exit(main_with(sys.argv[1:], process_terminal(os.environ)))


if __name__ == "__main__":
    main()
