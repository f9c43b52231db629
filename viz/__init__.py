"""Figures of what `landscape` computes: each plot takes a Dataset and draws what is in it."""

import sys
import types

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "accuracy": ["plot_accuracy", "plot_phase_diagram"],
        "style": ["panel_letters", "style"],
        "history": ["plot_history"],
        "bifurcation": ["plot_bifurcation_diagram"],
        "attractor": ["plot_attractor_diagram"],
        "lyapunov": ["plot_lyapunov_exponents"],
        "eigenvalues": ["plot_eigenvalues"],
        "spectrum": ["plot_spectral_density"],
        "gradient": ["plot_gradient_decomposition"],
        "loss_change": ["plot_loss_change"],
        "sharpness": ["plot_sharpness"],
        "valley": ["plot_valley_width"],
        "slices": ["plot_line_slice", "plot_path", "plot_plane_slice"],
        "surface": ["plot_surface"],
        "interactive": ["interactive_surface"],
        "film": ["save_film"],
        "dashboard": ["dashboard"],
        "export": ["save_figure"],
        "vtk": ["save_vtk"],
        "regions": ["plot_regions"],
        "runs": ["plot_runs"],
        "onsets": ["plot_onset_curvature", "plot_onset_sharpness", "plot_onsets"],
    },
)


class _Package(types.ModuleType):
    """Keeps the function `viz.style` in sight when its module of the same name is imported."""

    def __setattr__(self, name, value):
        if isinstance(value, types.ModuleType) and name in __all__:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
