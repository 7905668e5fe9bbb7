"""The only package that touches llama.cpp: a binding change stays in here.

Flows in: checked files, settings, batches of tokens. Flows out: models, contexts, logits, sampled
tokens, quantized bytes. Not here: scheduling of requests (engine/), checks of files (gguf/).
"""
