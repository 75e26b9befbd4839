"""shared by train + live, DO NOT change features without retraining"""
import csv
import json
import math
import os
import sys
import time

FEATURES = ["ret_1", "ret_3", "ret_12", "vol_12"]
MODELS = "data/ml_models"


def load_klines(path):
    try:
        import pandas as pd
        return pd.read_csv(path)["close"].astype(float).tolist()
    except ImportError:  # no pandas on prod
        with open(path) as f:
            return [float(r["close"]) for r in csv.DictReader(f)]


def features(closes):
    """last row only"""
    c = closes[-13:]
    r = [c[i] / c[i - 1] - 1 for i in range(1, len(c))]
    m = sum(r) / len(r)
    vol = math.sqrt(sum((x - m) ** 2 for x in r) / len(r))
    return [c[-1] / c[-2] - 1, c[-1] / c[-4] - 1, c[-1] / c[-13] - 1, vol]


def sigmoid(z):
    return 1 / (1 + math.exp(-max(-30.0, min(30.0, z))))


def load_meta(name, tf):
    with open(f"{MODELS}/{name}_{tf}_meta.json") as f:
        return json.load(f)


def lite(meta, x):
    """the exported weights, so prod needs no torch / lightgbm"""
    w = meta["lite"]
    z = sum(a * (v - m) / s for a, v, m, s in zip(w["w"], x, w["mean"], w["std"])) + w["b"]
    return sigmoid(z)


def fault():
    """for chaos tests: FAULT=... in the env, or a file FAULT beside this one"""
    if os.environ.get("FAULT"):
        return os.environ["FAULT"]
    here = os.path.join(os.path.dirname(os.path.abspath(__file__)), "FAULT")
    return open(here).read().strip() if os.path.exists(here) else ""


def chaos():
    f = fault()
    if f == "exit":
        print("FATAL: chaos says exit", flush=True)
        sys.exit(3)
    if f == "hang":
        print("chaos says hang", flush=True)
        time.sleep(3600)
    return f
