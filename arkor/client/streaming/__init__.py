"""Server-sent events: parsing, connections, reconnection, and the event stream of a run."""
