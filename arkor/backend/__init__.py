"""The backend: an HTTP server that keeps jobs, and the processes that it starts to train and to answer.

Nothing of the client is imported here; both sides share only the vocabulary one floor below.
"""
