"""run before and after deploy"""
import os
import sys
import urllib.request

from common import chaos, features, lite, load_klines, load_meta

ok = chaos() != "unhealthy"
for name in ("lgb", "lstm"):
    try:
        meta = load_meta(name, "1h")
        p = lite(meta, features(load_klines("paper/ETHUSDT_1h.csv")))
        good = 0 < p < 1 and meta["n_features"] == 4
        print(f"{'OK ' if good else 'BAD'} {name}: val_auc {meta['val_auc']:.3f} last prob {p:.3f}")
        ok = ok and good
    except Exception as e:
        print(f"BAD {name}: {type(e).__name__}: {e}")
        ok = False
if "--skip-live-check" not in sys.argv:
    port = os.environ.get("HEALTH_PORT", "8080")
    print(urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).read().decode())
sys.exit(0 if ok else 1)
