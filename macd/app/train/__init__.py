"""`python -m macd.app.train`: real bars in, models with honest figures out."""
