"""The options that both halves offer, of a training and of the policy it evaluates, in one table.

The inventory reads them for its files, the training for its settings and flags. The profile's
default is not here: production trains `full`, a training by hand `demo`. Standard library alone: a
training host needs it.
"""

from __future__ import annotations

from typing import Literal, get_args

Stage = Literal["verify", "lgbm", "lstm", "tft", "onnx", "stacking"]
Profile = Literal["demo", "full"]
Engine = Literal["local", "ray"]
PolicyKind = Literal["tilt", "threshold"]  # how actions follow from the models' word
Hold = Literal["horizon", "signal"]  # when a position ends
# Of stocks, by its market identifier code (ISO 10383).
# fmt: off
Exchange = Literal[
    "BVMF", "XAMS", "XASX", "XBKK", "XBOM", "XBRU", "XCSE", "XDUB",
    "XETR", "XHEL", "XHKG", "XIDX", "XIST", "XJSE", "XKLS", "XKRX",
    "XLIS", "XLON", "XMAD", "XMEX", "XMIL", "XNYS", "XNZE", "XOSL",
    "XPAR", "XSES", "XSHG", "XSTO", "XSWX", "XTAI", "XTKS", "XTSE",
    "XWAR", "XWBO",
]
# fmt: on
# When it is open: always, on weekdays, or in the sessions of New York or of an exchange.
Market = Literal["crypto", "fx", "stocks", Exchange]
FindingName = Literal[  # about bars, and a person may accept it as the market itself
    "gap",
    "missing",
    "zero-volume",
    "frozen",
    "spike",
    "jump",
    "denomination",
    "overlap",
    "shifted",
    "local-time",
]
MARKETS: tuple[Market, ...] = get_args(Market)
EXCHANGES: tuple[Exchange, ...] = get_args(Exchange)
STAGES: tuple[Stage, ...] = get_args(Stage)
PROFILES: tuple[Profile, ...] = get_args(Profile)
ENGINES: tuple[Engine, ...] = get_args(Engine)
ACCEPTABLE: tuple[FindingName, ...] = get_args(FindingName)

SYMBOL = "BTCUSD"
TF = "1h"
SEED = 7
ENGINE: Engine = "local"
MIN_MOVE = 0.003  # of |return|, a fraction: bars that moved less are not trained on
LONG, SHORT = 0.60, 0.40  # probabilities of "up" at which a threshold policy acts
FEE_BPS, SLIPPAGE_BPS = 10.0, 2.0  # a taker's fee on a large spot exchange, and half its spread
