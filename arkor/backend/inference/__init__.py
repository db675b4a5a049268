"""Base and adapter → tokens → text, in the serving process."""
