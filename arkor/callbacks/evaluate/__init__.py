"""The callback `Evaluate`: asks the model the same questions at each checkpoint."""
