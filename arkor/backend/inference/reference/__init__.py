"""Answers computed by transformers, the reference for every other engine."""
