"""`python -m macd.app.train`: real bars in, models and their figures out."""

import os

# The last digit of a sum depends on how many threads split it. Read once, when numpy is imported.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
