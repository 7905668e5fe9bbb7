"""Hugging Face checkpoints to GGUF and back, without torch."""
