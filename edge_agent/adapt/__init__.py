"""Learning on the device: LoRA over packed weights in NumPy. No torch, no llama context in here."""
