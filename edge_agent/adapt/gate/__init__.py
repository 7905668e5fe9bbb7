"""Whether an adapter may be activated: detectors, checks and their significance. No training, no
store."""
