"""The harnesses of this folder are scripts, which import each other by name; their tests do so too."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
