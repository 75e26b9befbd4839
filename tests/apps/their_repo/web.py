"""the page for the boss"""
import glob
import os

from common import fault


def page():
    files = sorted(glob.glob("logs/live/trade_*.jsonl"))
    last = open(files[-1]).readlines()[-1] if files else "nothing yet"
    return f"<pre>{last}</pre>"


port = int(os.environ.get("WEB_PORT", "8081"))
if fault() == "web_exit":
    raise SystemExit("web: chaos says exit")
try:
    from flask import Flask
    app = Flask(__name__)
    app.get("/")(page)
    print(f"web (flask) listening on {port}", flush=True)
    app.run("127.0.0.1", port)
except ImportError:  # the old box
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class H(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(page().encode())

    server = HTTPServer(("127.0.0.1", port), H)
    print(f"web listening on {port}", flush=True)
    server.serve_forever()
