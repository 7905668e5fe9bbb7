"""edge-agent: serve, measure and adapt a small language model on a small board."""

__version__ = "0.3.0"
