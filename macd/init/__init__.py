"""A first inventory for an application that macd has not met: look, guess, write.

`look.py` looks, `guess.py` decides what that means, `text.py` writes it down, `keys.py` makes the
keys that sign.
"""
