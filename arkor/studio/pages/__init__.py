"""The pages of Studio: the routes of each page, its parts and its actions."""
