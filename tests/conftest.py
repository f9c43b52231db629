"""One thread a process: small matrices gain nothing from more, and a second test process needs the other core."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch and numpy load, after this file
