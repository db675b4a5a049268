"""HTTP requests to a backend: sessions, retries, cancellation, deadlines and errors."""
