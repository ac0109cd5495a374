"""Makes `oracle_checks.py` importable: tests have no package, and it also runs as a script."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
