"""What every test shares: the guard around the machine's own vsock."""

import os
from pathlib import Path

from tests.guard import sitecustomize

# Importing it guards this process; by PYTHONPATH it guards those that tests start.
os.environ["PYTHONPATH"] = str(Path(sitecustomize.__file__).parent)
