"""Frames into files: animated WebP by Pillow, H.264 video by the program ffmpeg."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from PIL import Image, features


def check_encoder(path: Path) -> None:
    """Say what is missing before hours of frames are drawn.

    Raises
    ------
    ValueError
        The ending of `path` is no film's.
    RuntimeError
        What writes such a film is not installed.
    """
    ending = path.suffix.lower()
    if ending not in WRITERS:
        raise ValueError(f"path must end with {' or '.join(WRITERS)}, got {path.name!r}")
    if ending == ".webp" and not features.check("webp"):
        raise RuntimeError("Pillow was built without WebP, in which films are written: pip install --upgrade pillow")
    if ending == ".mp4" and shutil.which("ffmpeg") is None:
        raise RuntimeError("a film ending with .mp4 is written by the program ffmpeg: install it, or write .webp")


def _write_webp(images: list[Image.Image], path: Path, fps: float, quality: int) -> None:
    # No key frames after the first: nobody seeks in a short film, and they are a third of the file.
    keys = {"kmin": len(images) + 1, "kmax": len(images) + 2}
    options = {"save_all": True, "append_images": images[1:], "duration": round(1000 / fps), "loop": 0}
    images[0].save(path, quality=quality, method=4, **keys, **options)


def _write_mp4(images: list[Image.Image], path: Path, fps: float, quality: int) -> None:
    width, height = images[0].size
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{fps:g}", "-i", "-"]
    # Players want even sizes and this pixel format; H.264 counts quality from 51 (worst) to 0.
    size = ["-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2:color=white", "-pix_fmt", "yuv420p"]
    codec = ["-c:v", "libx264", "-crf", str(round(43 - 0.3 * quality)), "-movflags", "+faststart"]
    done = subprocess.run(
        ["ffmpeg", "-loglevel", "error", "-y", *raw, *size, *codec, str(path)],
        input=b"".join(image.tobytes() for image in images),
        capture_output=True,
    )
    if done.returncode:
        path.unlink(missing_ok=True)
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"]
        raise RuntimeError(f"ffmpeg could not write {path.name}: {said[-1]}; write .webp instead")


WRITERS = {".webp": _write_webp, ".mp4": _write_mp4}
