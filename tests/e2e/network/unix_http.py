"""Serves this directory over HTTP on the UNIX socket that is argument 1."""

import http.server
import socketserver
import sys


class Handler(http.server.SimpleHTTPRequestHandler):
    def address_string(self):
        return "client"

    def log_message(self, *_):
        pass


with socketserver.UnixStreamServer(sys.argv[1], Handler) as server:
    server.serve_forever()
