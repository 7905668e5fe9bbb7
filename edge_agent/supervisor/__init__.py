"""The engine as HTTP sees it: how many may come in, which model is loaded, the link to the worker
process."""
