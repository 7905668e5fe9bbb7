"""Forward and backward of the decoder over packed weights, in NumPy or CuPy."""
