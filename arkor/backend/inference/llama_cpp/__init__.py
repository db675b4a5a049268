"""Answers computed by llama.cpp, through the shared library in the wheel of `xllamacpp`."""
