"""Take market-direction models from a GPU box into production and back out again, safely."""

__version__ = "0.1.0"
