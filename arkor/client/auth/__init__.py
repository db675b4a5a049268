"""Credentials: the file that stores them, OAuth, and signing in with a browser."""
