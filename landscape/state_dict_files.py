"""Named tensors in a checkpoint that others wrote: torch.save, safetensors, Hugging Face. Nothing in it is run."""

from __future__ import annotations

import json
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch

from landscape.state_dict_names import INDEXES, WHOLE

RAW = ("state_dict", "model_state_dict", "model", "module", "net", "network", "params", "weights")
EMA = ("ema_state_dict", "model_ema", "ema_model", "ema", "state_dict_ema")
"""Names under which checkpoints keep their state dict, and that of averaged weights, beside other things."""

Tensors = Mapping[str, torch.Tensor]


def read_tensors(path: Path, weights: str = "raw") -> dict[str, torch.Tensor]:
    """The tensors in `path` by name; those of large files are mapped, and read when they are used.

    Parameters
    ----------
    path : Path
        A file, or a folder as Hugging Face writes it, sharded or not.
    weights : {"raw", "ema"}
        Which, where the file holds averaged weights beside those that were trained.

    Raises
    ------
    FileNotFoundError
        If there is nothing at `path`, or a shard is missing.
    ValueError
        If it is empty, cut off or no checkpoint, or holds anything but tensors, numbers and texts, so that reading it
        could run code.
    """
    if path.is_dir():
        return _folder(path, weights)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}; check the path")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty; was it written to the end?")
    if path.suffix == ".safetensors":
        return _safetensors(path)
    return _state_dict(path, _loaded(path), weights)


def _folder(path: Path, weights: str) -> dict[str, torch.Tensor]:
    for name in INDEXES:
        if (path / name).exists():
            try:
                places = json.loads((path / name).read_text())["weight_map"]
                shards = sorted({str(place) for place in places.values()})
            except (ValueError, LookupError, AttributeError, TypeError) as error:
                raise ValueError(f"{path / name} is no list of shards: {error}") from None
            found: dict[str, torch.Tensor] = {}
            for shard in shards:
                if Path(shard).name != shard:
                    raise ValueError(f"{path / name} names a shard outside its folder: {shard}")
                found |= read_tensors(path / shard, weights)
            missing = sorted(places.keys() - found.keys())
            if missing:
                raise ValueError(f"{path}: the shards lack {', '.join(missing[:3])}, which {name} lists")
            return found
    for name in WHOLE:
        if (path / name).exists():
            return read_tensors(path / name, weights)
    raise ValueError(f"{path} holds no {' or '.join(WHOLE)}, and no list of shards")


def _safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as safetensors: {_line(error)}; is it cut off?") from None


def _loaded(path: Path):
    """What torch's own, restricted unpickler finds in `path`."""
    zipped = zipfile.is_zipfile(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is refused below anyway
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        reason = _line(error)
        if "Unsupported" in reason or "GLOBAL" in reason or "allowlist" in reason or "Weights only" in reason:
            raise ValueError(
                f"{path} holds Python objects other than tensors; reading them could run code, so it is refused. "
                "Save model.state_dict() instead"
            ) from None
        raise ValueError(f"{path} is no checkpoint that torch.save wrote: {reason}") from None
    except RuntimeError as error:
        reason = _line(error)
        if "TorchScript" in reason or "ScriptModule" in reason:
            raise ValueError(
                f"{path} is a TorchScript program, which is refused; save its state_dict() instead"
            ) from None
        raise ValueError(f"{path} cannot be read: {reason}; is it cut off?") from None
    except (EOFError, OSError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no checkpoint that torch.save wrote, or is cut off: {_line(error)}") from None


def _state_dict(path: Path, content, weights: str) -> dict[str, torch.Tensor]:
    """The state dict in what a file holds: the whole, or one of its entries."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a state dict; save model.state_dict()")
    averaged = next((content[name] for name in EMA if _is_state_dict(content.get(name))), None)
    if weights == "ema":
        if averaged is None:
            raise ValueError(f'{path} holds no averaged weights (under {", ".join(EMA)}); use weights="raw"')
        return _tensors(averaged)
    for name in RAW:
        if _is_state_dict(content.get(name)):
            return _tensors(content[name])
    if _is_state_dict(content):
        return _tensors(content)
    raise ValueError(
        f"{path} holds {', '.join(map(str, list(content)[:8])) or 'nothing'}, and no state dict that we know"
    )


def _is_state_dict(value) -> bool:
    return isinstance(value, Mapping) and any(isinstance(item, torch.Tensor) for item in value.values())


def _tensors(found: Mapping) -> dict[str, torch.Tensor]:
    return {str(name): item for name, item in found.items() if isinstance(item, torch.Tensor)}


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text[:300] or type(error).__name__
