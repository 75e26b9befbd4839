"""What holds for every test, whoever runs them wherever."""

import os

from hypothesis import HealthCheck, settings

# A busy machine is no defect.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

for name in ("MACD_INVENTORY", "MACD_ROOT"):  # an operator's own must not steer the commands typed
    os.environ.pop(name, None)
