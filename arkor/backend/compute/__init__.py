"""Device, threads and memory of a process that computes; loading models."""
