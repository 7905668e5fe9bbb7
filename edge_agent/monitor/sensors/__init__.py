"""The board's state as its kernel reports it: one file per subsystem, each read below a root."""
