"""A run's configuration and rows → an adapter. Torch is imported here, and in the worker's process alone."""
