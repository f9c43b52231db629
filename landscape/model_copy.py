"""The private copy of a model that an objective evaluates: fit to be differentiated twice, apart from the user's."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice

import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


def private_copy(model: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A copy of `model` on `device` in `dtype` that computes the same and may be differentiated twice.

    Weight norm is replaced by its formula. The copy's own trainable parameters are NaN: an evaluation puts others in
    their place, and what reads them from elsewhere (a list of parameters, a forward pass that activation checkpointing
    runs again) is seen instead of silently wrong.
    """
    private = duplicate(model).to(device=device, dtype=dtype)
    _replace_weight_norm(private)
    with torch.no_grad():
        for parameter in private.parameters():
            if parameter.requires_grad:
                parameter.fill_(torch.nan)
    return private


def duplicate(model: nn.Module) -> nn.Module:
    """A deep copy of `model`, also where a forward pass has left tensors of its graph as attributes of a module."""
    memo = {}
    for module in model.modules():
        for value in (*vars(module).values(), *module._buffers.values()):
            if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter):
                memo[id(value)] = _detached(value)
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise ValueError(
            f"the model cannot be copied ({first_line(error)}); remove what it keeps of past evaluations, or build it "
            "anew and load its state_dict"
        ) from error


def first_line(error: Exception) -> str:
    """What `error` says, in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _detached(tensor: torch.Tensor) -> torch.Tensor:
    try:
        return tensor.detach().clone()
    except RuntimeError:  # left by a vmap that has ended, and of no use to anyone
        return torch.empty(0)


def refuse_unfit(model: nn.Module) -> None:
    """Raise ValueError, with the remedy, if `model` cannot be evaluated as a function of its parameters."""
    for name, module in model.named_modules():
        where = f"{name or 'the model'} ({type(module).__name__})"
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                f"{where} is a ScriptModule, whose parameters cannot be replaced; give the nn.Module itself"
            )
        if hasattr(module, "_orig_mod"):
            raise ValueError(f"{where} is compiled, and compiled code has no double backward; give model._orig_mod")
        if any(nn.parameter.is_lazy(tensor) for tensor in (*module._parameters.values(), *module._buffers.values())):
            raise ValueError(f"{where} has parameters without a shape yet; run the model once on a batch first")
        if getattr(module, "max_norm", None) is not None and isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            raise ValueError(f"{where} rescales its parameters in its forward pass; build it with max_norm=None")
    refuse_training_mode(model)


def refuse_training_mode(model: nn.Module) -> None:
    """Raise ValueError if `model` is in training mode where that changes what it computes."""
    for name, module in model.named_modules():
        if module.training and _differs_in_training(module):
            raise ValueError(
                f"{name or 'the model'} ({type(module).__name__}) is in training mode, so that the loss is not a "
                "function of the parameters alone; call model.eval() first"
            )


def _differs_in_training(module: nn.Module) -> bool:
    """Whether `module` draws random numbers, or updates buffers, in training mode."""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    if isinstance(module, nn.MultiheadAttention):
        return module.dropout > 0
    if isinstance(module, nn.RNNBase):
        return module.dropout > 0 and module.num_layers > 1
    if isinstance(module, nn.modules.batchnorm._NormBase):  # batch norms and instance norms
        return module.track_running_stats
    if any(isinstance(hook, SpectralNorm) for hook in module._forward_pre_hooks.values()):
        return True
    return isinstance(module, (nn.RReLU, parametrizations._SpectralNorm))


def batch_norm_statistics(model: nn.Module) -> str:
    """Where the batch norms of `model` have their means and variances from, in words; empty where it has none."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if any(norm.running_mean is None for norm in norms):
        return "statistics of the batch"
    return "running statistics of the model" if norms else ""


def refuse_batch_statistics(model: nn.Module, batches: Iterable) -> None:
    """Raise ValueError if a batch norm would take its statistics from each of several batches."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            with torch.random.fork_rng(devices=[]):  # DataLoaders draw from the global state even without shuffling
                several = len(list(islice(iter(batches), 2))) > 1
            if several:
                raise ValueError(
                    f"{name or 'the model'} ({type(module).__name__}) keeps no running statistics but takes those of "
                    "each batch, so that the loss depends on how the samples are divided; give them as one batch "
                    "(batch_size=None), or use track_running_stats=True"
                )
            return


def _replace_weight_norm(model: nn.Module) -> None:
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is parametrizations._WeightNorm:
                setattr(module, name, _WeightNormFormula(child.dim))
        for key, hook in module._forward_pre_hooks.items():
            if type(hook) is WeightNorm:
                module._forward_pre_hooks[key] = _WeightNormHook(hook.name, hook.dim)


def _weight_norm(g: torch.Tensor, v: torch.Tensor, dim: int) -> torch.Tensor:
    """g v/‖v‖, the norm over all dims but `dim`, over all of them for −1 (Salimans and Kingma 2016, arXiv 1602.07868).

    ``torch._weight_norm`` has the same values and gradients, but in torch 2.13 its double backward is wrong.
    """
    return v * (g / torch.norm_except_dim(v, 2, dim))


class _WeightNormFormula(nn.Module):
    """In place of the module of ``torch.nn.utils.parametrizations.weight_norm``."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    def forward(self, g: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return _weight_norm(g, v, self.dim)


class _WeightNormHook:
    """In place of the hook of ``torch.nn.utils.weight_norm``, which sets the weight before each forward pass."""

    def __init__(self, name: str, dim: int):
        self.name, self.dim = name, dim

    def __call__(self, module: nn.Module, inputs) -> None:
        g, v = getattr(module, f"{self.name}_g"), getattr(module, f"{self.name}_v")
        setattr(module, self.name, _weight_norm(g, v, self.dim))


def parameter_places(model: nn.Module) -> dict[str, str]:
    """The name in the layout of the parameter at each place of `model`, a place for each module that holds it.

    Functional calls that find tied parameters themselves leave a module that is used twice with wrong parameters.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {
        f"{prefix}.{key}" if prefix else key: names[id(parameter)]
        for prefix, module in model.named_modules()
        for key, parameter in module._parameters.items()
        if id(parameter) in names
    }


def is_recurrent(model: nn.Module) -> bool:
    """Whether `model` holds layers of torch.nn.RNN, LSTM or GRU."""
    return any(isinstance(module, nn.RNNBase) for module in model.modules())


@contextmanager
def twice_differentiable(recurrent: bool) -> Iterator[None]:
    """Torch's kernels restricted to those that can be differentiated twice, in either mode, while this lasts.

    Attention takes torch's composite formula, since fused kernels have no double backward; with `recurrent`, neither
    cuDNN nor oneDNN serves, since their recurrent layers have no double backward or no forward mode.
    """
    cuda, backends = torch.backends.cuda, torch.backends
    flash, efficient, cudnn = cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.cudnn_sdp_enabled()
    composite, fast_path = cuda.math_sdp_enabled(), backends.mha.get_fastpath_enabled()
    before = backends.cudnn.enabled, backends.mkldnn.enabled
    try:
        cuda.enable_math_sdp(True)
        cuda.enable_flash_sdp(False)
        cuda.enable_mem_efficient_sdp(False)
        cuda.enable_cudnn_sdp(False)
        backends.mha.set_fastpath_enabled(False)
        if recurrent:
            backends.cudnn.enabled = backends.mkldnn.enabled = False
        yield
    finally:
        cuda.enable_math_sdp(composite)
        cuda.enable_flash_sdp(flash)
        cuda.enable_mem_efficient_sdp(efficient)
        cuda.enable_cudnn_sdp(cudnn)
        backends.mha.set_fastpath_enabled(fast_path)
        if recurrent:
            backends.cudnn.enabled, backends.mkldnn.enabled = before
