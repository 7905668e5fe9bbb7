"""GGUF files as untrusted input: bounded reading of headers, model files and adapter files. No
weights are computed here."""
