"""Doctests import every module; those that need the optional numba are left out where it is not installed."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("numba") else ["dynloss/kernels/numba_*.py"]
