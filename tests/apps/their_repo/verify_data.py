"""checks the klines before training"""
import glob
import sys

from common import load_klines

files = sorted(glob.glob("data/klines/*.csv"))
if not files:
    print("no klines in data/klines!!")
    sys.exit(1)
bad = 0
for f in files:
    c = load_klines(f)
    jumps = sum(abs(b / a - 1) > 0.3 for a, b in zip(c, c[1:]))
    print(f"{f}: {len(c)} bars, {jumps} jumps")
    bad += jumps > 0 or len(c) < 500
sys.exit(1 if bad else 0)
