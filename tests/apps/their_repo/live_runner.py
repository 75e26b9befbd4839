#!/usr/bin/env python3
"""the engine. --phase paper|live. one JSON line per bar into logs/live/"""
import argparse
import json
import os
import sys
import threading
import time
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, HTTPServer

try:
    import dotenv
    dotenv.load_dotenv()
except ImportError:
    dotenv = None

from common import chaos, features, lite, load_klines, load_meta

ap = argparse.ArgumentParser()
ap.add_argument("--phase", default="paper", choices=["paper", "live"])
ap.add_argument("--symbol", default="ETHUSDT")
ap.add_argument("--tf", default="1h")
args = ap.parse_args()

BAR = float(os.environ.get("BAR_SECONDS", "1"))
STACKING = os.environ.get("ML_ENABLE_STACKING", "0") == "1"
FAULT = chaos()
if FAULT == "fork" and os.fork():
    time.sleep(1)
    sys.exit(0)
print(f"starting phase={args.phase} stacking={STACKING} release={os.environ.get('MACD_RELEASE')}", flush=True)

lgb, lstm = load_meta("lgb", args.tf), load_meta("lstm", args.tf)
closes = load_klines("paper/ETHUSDT_1h.csv")
os.makedirs("logs/live", exist_ok=True)
os.makedirs("data/live", exist_ok=True)
state = {"status": "starting", "bars": 0, "pid": os.getpid(), "stacking": STACKING,
         "dotenv": dotenv is not None}


class H(BaseHTTPRequestHandler):
    def do_GET(self):
        good = state["status"] == "ok" and FAULT != "never_ready"
        body = json.dumps(state).encode()
        self.send_response(404 if self.path != "/health" else 200 if good else 503)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *a):
        pass


port = int(os.environ.get("HEALTH_PORT", "8080"))
HTTPServer.allow_reuse_address = True
threading.Thread(target=HTTPServer(("127.0.0.1", port), H).serve_forever, daemon=True).start()


def write(level, **more):
    now = datetime.now(timezone.utc)
    row = {"timestamp": now.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z", "level": level, **more}
    with open(f"logs/live/trade_{now:%Y%m%d}.jsonl", "a") as f:
        f.write(json.dumps(row) + "\n")


def iso(t):
    return datetime.fromtimestamp(t, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


# paper: bars of BAR seconds that follow the clock, prices go round and round
bar = int(time.time() // BAR)
while True:
    i = 13 + bar % (len(closes) - 13)
    x = features(closes[i - 13 : i])
    p_lgb, p_lstm = lite(lgb, x), lite(lstm, x)
    comp = {"ml_bull_prob": (p_lgb + p_lstm) / 2, "ml_lgb_prob": p_lgb, "ml_lstm_prob": p_lstm,
            "ml_tft_prob": (2 * p_lgb + p_lstm) / 3, "ml_stacking_prob": 0.4 * p_lgb + 0.6 * p_lstm,
            "ml_error": None}
    if FAULT == "no_models":
        comp = {"ml_bull_prob": None, "ml_error": "lstm: model file is broken"}
    decided = comp.get("ml_stacking_prob") if STACKING else comp["ml_bull_prob"]
    action = "HOLD" if decided is None else "BUY" if decided > 0.5 else "SELL"
    write("SIGNAL", symbol=args.symbol, bar_time=iso(bar * BAR),
          data={"action_taken": action, "close": closes[i - 1], "components": comp})
    state.update(status="ok", bars=state["bars"] + 1, last_bar=iso(bar * BAR))
    with open("data/live/position.json", "w") as f:
        json.dump({"side": action, "bars": state["bars"]}, f)
    if state["bars"] == 1:
        print(f"first signal {action}; health on {port}", flush=True)
    if FAULT == "crash_later" and state["bars"] >= 3:
        raise RuntimeError("chaos says crash")
    bar += 1
    time.sleep(max(0.0, bar * BAR - time.time()))
