"""What goes over the wire between client and backend: its classes, their validation and their JSON."""
