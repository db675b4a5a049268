"""The trainer: build the configuration of a run, start it, and dispatch its events to callbacks."""
