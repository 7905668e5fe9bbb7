"""The front process: assembly, listeners, sd_notify."""
