"""The check of a run before it starts: data, time and memory."""
