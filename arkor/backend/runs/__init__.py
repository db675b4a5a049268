"""The folder of a run: its paths, event log and checkpoints, and the queries on them."""
