"""What every test shares: the guard around the machine's own vsock."""

import os
import sys
from pathlib import Path

_GUARD = Path(__file__).parent / "guard"
sys.path.insert(0, str(_GUARD))
os.environ["PYTHONPATH"] = str(_GUARD)  # for the processes that tests start

import sitecustomize  # noqa: E402, F401 - importing it sets the guard
