"""STATE/edge-agent.db: one SQLite file, one writer connection, a table a file."""
