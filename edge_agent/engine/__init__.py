"""The worker process: one model, its slots and everything that touches tokens."""
