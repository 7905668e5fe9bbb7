"""What the command line asks of a daemon, or of the state directory when none runs."""
