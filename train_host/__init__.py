"""Fine-tuning, merging and evaluation on a server with GPUs. Comes with a later issue."""
