"""The subcommands of `edge-convert`, one file each."""
