"""The processes that train, and the supervisor that starts and watches them."""
