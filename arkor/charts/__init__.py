"""A loss over its steps, as a picture: pure functions of curves, which know nothing of runs."""
