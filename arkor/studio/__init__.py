"""Studio: the local web page of a project. `arkor dev` opens it.

A client of `client/api.py` like any other, so that it works against every backend; nothing of the backend is imported.
The browser talks to the server of Studio alone. `security.py` says who may, a page is a room of its own below `pages/`,
and what a page looks like is in `templates/` and `static/`.
"""
