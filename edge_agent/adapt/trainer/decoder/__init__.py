"""Forward and backward of the decoder over packed weights, in NumPy or CuPy.

Flows in: a checked GGUF file, adapters, packed rows of tokens. Flows out: losses and LoRA
gradients. Not here: data, optimizer steps, checkpoints (adapt/trainer/).
"""
