"""Conversion of base models and adapters to GGUF, the file format of llama.cpp."""
