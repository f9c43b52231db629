"""Ways in which a file may be damaged: bits, stretches, its end, blocks in the wrong place."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

PAGE = 4096
SIGNATURES = (
    b"\x89HDF OHDR OCHK GCOL BTHD BTLF BTIN FRHP FHDB FHIB FSHD FSSE EAHD EAIB EASB EADB FAHD FADB TREE HEAP SNOD"
)
"""What blocks of HDF5's own begin with (HDF5 File Format Specification 3.0)."""


def damaged(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """A damaged copy of `content`, and what was done to it; one half strikes pages that hold metadata."""
    image = bytearray(content)
    pages = metadata_pages(content) if rng.random() < 0.5 else range(-(-len(content) // PAGE))

    def place() -> int:
        return min(len(image) - 1, int(rng.choice(pages)) * PAGE + int(rng.integers(PAGE)))

    way = WAYS[rng.integers(len(WAYS))]
    what = way(image, place, rng)
    return f"{way.__name__.strip('_')} {what}", bytes(image)


def metadata_pages(content: bytes) -> list[int]:
    """Pages in which a block of HDF5's own begins."""
    names = SIGNATURES.split()
    pages = range(0, len(content), PAGE)
    return [start // PAGE for start in pages if any(name in content[start : start + PAGE] for name in names)]


def flip_a_bit(image: bytearray, place: Callable[[], int], rng: np.random.Generator) -> str:
    """Flip one bit."""
    at, bit = place(), int(rng.integers(8))
    image[at] ^= 1 << bit
    return f"{bit} of byte {at}"


def flip_bits(image: bytearray, place: Callable[[], int], rng: np.random.Generator) -> str:
    """Flip some bits, anywhere."""
    return ", ".join(flip_a_bit(image, place, rng) for _ in range(rng.integers(2, 20)))


def overwrite_at_random(image: bytearray, place: Callable[[], int], rng: np.random.Generator) -> str:
    """Put random bytes over a stretch."""
    start, stop = _stretch(image, place, rng)
    image[start:stop] = rng.bytes(stop - start)
    return f"{start}:{stop}"


def overwrite_with_zeros(image: bytearray, place: Callable[[], int], rng: np.random.Generator) -> str:
    """Put zeros over a stretch, as a disk does that lost a write."""
    start, stop = _stretch(image, place, rng)
    image[start:stop] = bytes(stop - start)
    return f"{start}:{stop}"


def truncate(image: bytearray, place: Callable[[], int], rng: np.random.Generator) -> str:
    """Cut the end off."""
    at = place()
    del image[at:]
    return f"to {at} bytes"


def swap_blocks(image: bytearray, place: Callable[[], int], rng: np.random.Generator) -> str:
    """Exchange two stretches, or two whole pages."""
    (a, _), (b, _), size = _stretch(image, place, rng), _stretch(image, place, rng), _length(rng)
    if rng.random() < 0.5:
        a, b, size = a - a % PAGE, b - b % PAGE, PAGE
    size = min(size, abs(a - b), len(image) - max(a, b))
    image[a : a + size], image[b : b + size] = image[b : b + size], image[a : a + size]
    return f"of {size} bytes at {a} and {b}"


def duplicate(image: bytearray, place: Callable[[], int], rng: np.random.Generator) -> str:
    """Copy a stretch, or a page, to another place: over what is there, or between what is there."""
    a, b, size = place(), place(), _length(rng)
    if rng.random() < 0.5:
        a, b, size = a - a % PAGE, b - b % PAGE, PAGE
    block = image[a : a + size]
    if rng.random() < 0.5:
        image[b : min(len(image), b + len(block))] = block[: len(image) - b]
        return f"{len(block)} bytes at {a} over those at {b}"
    image[b:b] = block
    return f"{len(block)} bytes at {a} before those at {b}"


WAYS = (flip_a_bit, flip_bits, overwrite_at_random, overwrite_with_zeros, truncate, swap_blocks, duplicate)


def _length(rng: np.random.Generator) -> int:
    """1 … 65,536, short ones as often as long ones."""
    return int(2 ** rng.uniform(0, 16))


def _stretch(image: bytearray, place: Callable[[], int], rng: np.random.Generator) -> tuple[int, int]:
    start = place()
    return start, min(len(image), start + _length(rng))
