"""Studio: the local web page of a project, opened by `arkor dev`.

It is a client of the backend like any script, through `client/api.py`; the browser talks only to
Studio's own server. `security.py` decides which requests are accepted, each page has a module in
`pages/`, and its HTML, CSS and JavaScript are in `templates/` and `static/`.
"""
