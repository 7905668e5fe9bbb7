"""Hugging Face checkpoints to GGUF and back, without torch. Comes with a later issue."""
