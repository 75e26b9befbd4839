"""`python -m macd.app.train`: real bars in, models and their figures out."""
