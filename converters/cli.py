"""The `edge-convert` command. Not here yet: it comes with a later issue, and says so.

Flows in: arguments. Flows out: a message and exit code 1; `--help` and `--version` work.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TextIO

from edge_agent import __version__

HELP = """\
Usage: edge-convert [OPTIONS]

  Turn Hugging Face checkpoints and LoRA adapters into GGUF files.
  Not available in this version ({version}): it comes with a later one.

Options:
  --version   Print the version.
  -h, --help  Show this message and exit.
"""


def main_with(argv: Sequence[str], stdout: TextIO, stderr: TextIO) -> int:
    """Returns the exit code."""
    if {"-h", "--help"} & set(argv):
        stdout.write(HELP.format(version=__version__))
        return 0
    if "--version" in argv:
        stdout.write(f"edge-convert {__version__}\n")
        return 0
    stderr.write(
        "error: edge-convert is not available yet: the converters come with a later version\n"
        "hint:  `edge-agent pull hf:owner/repo:q4_k_m` fetches a file that is GGUF already\n"
    )
    return 1


def main() -> None:
    """Entry point of the `edge-convert` script."""
    sys.exit(main_with(sys.argv[1:], sys.stdout, sys.stderr))


if __name__ == "__main__":
    main()
