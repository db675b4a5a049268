"""The HTTP application of the backend."""
