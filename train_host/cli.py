"""The `edge-train` command: assembles its subcommands.

Flows in: sys.argv, the process's streams and environment. Flows out: an exit code
(edge_agent/cli/program.py). Not here: the commands (commands/). Each command imports torch and the
like by itself, so that --help is quick and works without them.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

import typer

from edge_agent.cli.options import add_command
from edge_agent.cli.program import new_app, run_program
from edge_agent.cli.terminal import Terminal, process_terminal
from train_host.commands.distill import DistillOptions, distill_logits
from train_host.commands.export import ExportOptions, export
from train_host.commands.merge import MergeOptions, merge
from train_host.commands.sft import SftOptions, sft

EPILOG = """\b
Examples:
  edge-train sft --model ./gemma-3-1b-it --data pairs.jsonl -o my-run
  edge-train export my-run --type q4_k_m
"""


def build_app() -> typer.Typer:
    """The typer app with every command, in the order of a fine-tune."""
    text = "Fine-tune a model on a server, for the device."
    app = new_app("edge-train", text, EPILOG)
    add_command(app, "sft", SftOptions, sft)
    add_command(app, "distill-logits", DistillOptions, distill_logits)
    add_command(app, "merge", MergeOptions, merge)
    add_command(app, "export", ExportOptions, export)
    return app


def main_with(argv: Sequence[str], terminal: Terminal) -> int:
    """Run one command and return its exit code: 0, 1 for a failure, 2 for wrong usage."""
    return run_program(build_app, "edge-train", argv, terminal)


def main() -> None:
    """Entry point of the `edge-train` script."""
    # llama.cpp logs a warning about every vocabulary.
    logging.getLogger("edge_agent").setLevel(logging.ERROR)
    sys.exit(main_with(sys.argv[1:], process_terminal(os.environ)))


if __name__ == "__main__":
    main()
