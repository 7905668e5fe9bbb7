"""The trainer process: it plans, trains and writes one adapter; it knows no store, no HTTP and no
engine."""
