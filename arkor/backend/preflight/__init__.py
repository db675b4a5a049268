"""The check of a run before it starts: its data, its time, its memory."""
