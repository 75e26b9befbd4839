"""What becomes app/serve.py of a release: it starts the service with the code of that very release.

Run as `python -I app/serve.py ...`: nothing of the environment or the current directory gets onto
sys.path, only the wheel beside it does.
"""

from __future__ import annotations

NAME = "serve.py"
SOURCE = '''"""Start macd's service from the wheel beside this file; made by macd, don't edit."""

import os
import sys

here = os.path.dirname(os.path.realpath(__file__))
wheels = sorted(name for name in os.listdir(here) if name.endswith(".whl"))
if len(wheels) != 1:
    sys.exit("serve.py: one wheel expected in %s, found %s" % (here, wheels or "none"))
sys.path.insert(0, os.path.join(here, wheels[0]))

from macd.app.service.__main__ import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
'''
