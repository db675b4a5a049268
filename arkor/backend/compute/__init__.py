"""Device, threads and memory of a process that computes, and the loading of models."""
