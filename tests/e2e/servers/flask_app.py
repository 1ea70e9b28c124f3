"""For Flask's own server."""

import counting
import flask

app = flask.Flask(__name__)
app.add_url_rule("/", view_func=lambda: "ready", endpoint="ready")
app.add_url_rule("/count", view_func=counting.count)
app.add_url_rule("/draw", view_func=counting.draw)
