"""Libraries that only some conversions need, imported when they are needed.

Flows in: a module's name. Flows out: the module, or an error that names the extra to install. Not
here: libraries that every installation has.
"""

from __future__ import annotations

import importlib
from typing import Any

from edge_agent.errors import EdgeAgentError

_EXTRAS = dict.fromkeys(("gguf", "sentencepiece", "tokenizers", "yaml"), "convert")


def load_extra(name: str, what: str) -> Any:
    """The module `name`, which `what` needs. Raises EdgeAgentError when it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        extra = _EXTRAS.get(name, "host")
        raise EdgeAgentError(
            f"cannot go on without {name}",
            f"{what} needs it: {error}",
            f"pip install 'edge-agent[{extra}]'",
        ) from None
