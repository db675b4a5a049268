"""The data of a run: its sources, downloads, file formats and checks."""
