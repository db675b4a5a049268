"""The data that client and backend exchange: classes, validation and JSON."""
