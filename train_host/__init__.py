"""Fine-tuning on a server: from rows of text to a file that the device runs."""
