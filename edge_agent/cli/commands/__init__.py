"""One file per group of commands: flags in, lines or one JSON document out.

A command is a function of its options and the Terminal. It may raise any EdgeAgentError; only
cli/main.py prints errors and exits. Heavy libraries are imported inside the functions that need
them, because `edge-agent --help` and shell completion load every file here.
"""
