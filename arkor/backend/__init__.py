"""The backend: an HTTP server that stores jobs, and its training and inference processes.

It imports nothing of the client; both sides share `arkor.protocol`.
"""
