"""The command `doctor`: diagnose an installation."""
