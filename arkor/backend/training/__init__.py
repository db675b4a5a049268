"""Training an adapter. Imports torch, and only in the worker's and the check's processes."""
