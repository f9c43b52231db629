"""Loss landscapes along saved training trajectories: curvature, slices, gradients, bifurcations, valleys."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "params": ["ParamLayout"],
        "objective": ["Objective"],
        "hdf5": ["load_dataset", "save_dataset"],
        "run": ["Run", "RunFormatError", "RunWriter", "open_run"],
        "state_dicts": ["read_state_dicts"],
        "lightning_callback": ["lightning_recorder"],
        "trainer_callback": ["trainer_recorder"],
        "hessian": ["top_eigenpairs"],
        "spectrum": ["hessian_trace", "spectral_density"],
        "directions": [
            "eigenvector_directions",
            "interpolation_directions",
            "pca_directions",
            "random_directions",
        ],
        "projection": ["project"],
        "slices": ["line_slice", "plane_slice", "reweight"],
        "gradient": ["gradient_decomposition", "motion"],
        "loss_parts": ["loss_change"],
        "sharpness_measures": ["sharpness"],
        "valley": ["valley_width"],
        "bifurcation": ["bifurcation_diagram", "find_onsets"],
        "dynamics": ["replay"],
        "onset": ["onset_curvature"],
        "attractor": ["attractor_diagram"],
        "lyapunov": ["lyapunov_exponents"],
        "regions": ["decision_regions"],
        "distribute": ["map_checkpoints"],
        "stability": ["stability_threshold"],
        "verification": ["verify"],
    },
)
