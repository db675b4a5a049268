"""The callback `Report`: writes the metrics of a run to files and experiment trackers."""
