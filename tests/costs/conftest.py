"""The harness of this folder is made of scripts, which import each other by name; its tests do so too."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
