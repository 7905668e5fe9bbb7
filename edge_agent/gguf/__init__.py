"""GGUF files as untrusted input: bounded reading of headers, model files and adapter files.

Why it exists: llama.cpp aborts the process on many malformed files, so this room reads every file
first. Flows in: paths and open files. Flows out: frozen descriptions, or a typed refusal. Not here:
computing with weights (llama/, adapt/trainer/decoder/).
"""
