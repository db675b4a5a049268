"""The trainer: builds the configuration of a run, starts it, and dispatches its events to callbacks."""
