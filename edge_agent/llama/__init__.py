"""The only package that touches llama.cpp: a binding change stays in here."""
