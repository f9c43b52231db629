"""Dynamical loss functions, and training with them that records parameters and curvature."""

import sys
import types

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "data": ["spiral"],
        "models": ["mlp"],
        "schedules": [
            "DecayingAmplitude",
            "FunctionSchedule",
            "SineSchedule",
            "SquareSchedule",
            "StaticTail",
            "TriangleSchedule",
        ],
        "losses": ["CrossEntropy", "DynamicalCrossEntropy", "DynamicalSquaredError", "SquaredError"],
        "samplers": ["OscillatingSampler", "UniformSampler"],
        "settings": ["TrainingSettings"],
        "train": ["train"],
        "ensemble": ["train_ensemble"],
        "ensemble_record": ["member"],
        "kernels": ["fastest_objective"],
        "sweep": ["sweep"],
        "rebuild": ["objective"],
        "examples": ["example_run"],
    },
)


class _Package(types.ModuleType):
    """Keeps the function `dynloss.train` in sight when its module of the same name is imported."""

    def __setattr__(self, name, value):
        if isinstance(value, types.ModuleType) and name in __all__:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
