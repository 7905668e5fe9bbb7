"""The subcommands of `edge-convert`, a file each."""
