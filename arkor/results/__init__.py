"""What a call returns to the user: history, evaluations, reports, and how a notebook shows them."""
