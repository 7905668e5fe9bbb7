"""The `edge-train` command. Not here yet: it comes with a later issue, and says so.

Flows in: arguments. Flows out: a message and exit code 1; `--help` and `--version` work.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TextIO

from edge_agent import __version__

HELP = """\
Usage: edge-train [OPTIONS]

  Fine-tune a model with LoRA on a server and merge the result.
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
        stdout.write(f"edge-train {__version__}\n")
        return 0
    stderr.write(
        "error: edge-train is not available yet: training comes with a later version\n"
        "hint:  `edge-agent --help` lists what works today\n"
    )
    return 1


def main() -> None:
    """Entry point of the `edge-train` script."""
    sys.exit(main_with(sys.argv[1:], sys.stdout, sys.stderr))


if __name__ == "__main__":
    main()
