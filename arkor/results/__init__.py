"""Objects that calls return to the user, and their rendering as text and HTML."""
