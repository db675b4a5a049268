"""The interface between the backend and a training engine, and the hyperparameters of a run."""
