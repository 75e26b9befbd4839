"""Training room: real bars in, models with honest figures out. `python -m macd.train` drives it."""
