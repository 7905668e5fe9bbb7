"""Model files and adapters of STATE: fetching them, the embedded ones, the adapter registry."""
