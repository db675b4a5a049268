"""The pages of Studio, a room each: what it reads from the backend, what it may be asked to do."""
