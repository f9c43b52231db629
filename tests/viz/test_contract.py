"""What every plot keeps to: the given axes comes back, text is legible, and bad input is named."""

import subprocess
import sys

import matplotlib.text
import numpy as np
import pytest

import viz

PLOTS = {  # plot: (fixture, a variable that it cannot do without, who returns it)
    "plot_history": ("history", "loss", "open_run"),
    "plot_eigenvalues": ("eigs", "eigenvalue", "landscape.top_eigenpairs"),
    "plot_spectral_density": ("spectrum", "density", "landscape.spectral_density"),
    "plot_gradient_decomposition": ("grads", "gradient_norm", "landscape.gradient_decomposition"),
    "plot_loss_change": ("change", "motion_part", "landscape.loss_change"),
    "plot_sharpness": ("sharp", "largest_eigenvalue", "landscape.sharpness"),
    "plot_valley_width": ("widths", "width", "landscape.valley_width"),
    "plot_plane_slice": ("plane", "loss", "landscape.plane_slice"),
    "plot_path": ("path", "beta", "landscape.project"),
    "plot_line_slice": ("line", "loss", "landscape.line_slice"),
    "plot_bifurcation_diagram": ("live", "orbit_period", "landscape.bifurcation_diagram"),
    "plot_attractor_diagram": ("frozen", "orbit_period", "landscape.attractor_diagram"),
    "plot_lyapunov_exponents": ("growth", "exponent", "landscape.lyapunov_exponents"),
    "plot_onsets": ("onsets", "onset_step", "landscape.find_onsets"),
    "plot_onset_curvature": ("curved", "threshold", "landscape.onset_curvature"),
    "plot_regions": ("regions", "predicted", "landscape.decision_regions"),
    "plot_accuracy": ("accuracies", "accuracy", "dynloss.sweep"),
    "plot_phase_diagram": ("phases", "accuracy", "dynloss.sweep"),
    "plot_onset_sharpness": ("rated", "learning_rate", "landscape.onset_curvature"),
}
TAKES_ONSETS = [
    "plot_history",
    "plot_eigenvalues",
    "plot_gradient_decomposition",
    "plot_loss_change",
    "plot_sharpness",
    "plot_valley_width",
]


@pytest.fixture(params=PLOTS)
def case(request):
    fixture, variable, source = PLOTS[request.param]
    return getattr(viz, request.param), request.getfixturevalue(fixture), variable, source


def test_every_public_plot_is_tested_here():
    several = {"plot_runs", "plot_surface"}  # takes several Datasets, 3D axes: test_runs.py, test_surface.py
    assert {name for name in viz.__all__ if name.startswith("plot_")} == set(PLOTS) | several


def test_the_given_axes_comes_back(case, new_axes):
    plot, dataset, _, _ = case
    ax = new_axes()
    assert plot(dataset, ax) is ax


def test_missing_variable_is_named_with_its_source_and_no_figure_stays(case):
    plot, dataset, variable, source = case
    options = {"variable": variable} if plot in (viz.plot_history, viz.plot_sharpness) else {}
    with pytest.raises(ValueError, match=rf"'{variable}' is missing: pass what {source}"):
        plot(dataset.drop_vars(variable), **options)


def test_an_array_is_refused(case):
    plot, dataset, variable, _ = case
    with pytest.raises(TypeError, match=r"xarray\.Dataset"):
        plot(dataset[variable])


def test_a_dataset_is_not_changed(case, keep):
    plot, dataset, _, _ = case
    before = dataset.copy(deep=True)
    keep(plot(dataset))
    assert dataset.identical(before)


def test_own_figures_have_text_of_seven_points_labels_and_journal_width(case, keep):
    plot, dataset, _, _ = case
    axes = np.ravel(keep(plot(dataset)))
    figure = axes[0].figure
    texts = [t for t in figure.findobj(matplotlib.text.Text) if t.get_visible() and t.get_text()]
    assert min(t.get_fontsize() for t in texts) >= 7
    assert axes[-1].get_xlabel()
    assert all(ax.get_ylabel() for ax in axes) or plot is viz.plot_onsets
    assert figure.get_figwidth() in (3.4, 7.0)


def test_all_text_lies_inside_the_figure(case, keep):
    plot, dataset, _, _ = case
    options = {}
    figure = np.ravel(keep(plot(dataset, **options)))[0].figure
    box = figure.get_tightbbox(figure.canvas.get_renderer())
    assert box.x0 >= -0.02
    assert box.y0 >= -0.02
    assert box.x1 <= figure.get_figwidth() + 0.02
    assert box.y1 <= figure.get_figheight() + 0.02


@pytest.mark.parametrize("name", TAKES_ONSETS)
def test_onsets_look_alike_everywhere(name, onsets, request, new_axes):
    ax = getattr(viz, name)(request.getfixturevalue(PLOTS[name][0]), new_axes(), onsets=onsets)
    alone = viz.plot_onsets(onsets, new_axes()).lines[0]
    found = next(line for line in ax.lines if line.get_label() == "onset")
    for look in ("get_color", "get_linestyle", "get_linewidth", "get_zorder"):
        assert getattr(found, look)() == getattr(alone, look)()


def test_a_single_selected_mode_is_refused_with_the_remedy(eigs):
    with pytest.raises(ValueError, match=r"must have dims \('step', 'mode'\).*\[item\]"):
        viz.plot_eigenvalues(eigs.isel(mode=0))


def test_bad_options_name_what_is_allowed(eigs, grads, widths, live, plane, path, spectrum, change, sharp, frozen):
    for call, allowed in (
        (lambda: viz.plot_eigenvalues(eigs, modes=[2]), r"among \[0, 1\]"),
        (lambda: viz.plot_spectral_density(spectrum, steps=[0, 5]), r"among \[0, 1000, 2000\], got 5"),
        (lambda: viz.plot_gradient_decomposition(grads, kind="share"), "fraction"),
        (lambda: viz.plot_valley_width(widths, mode=3), r"one of \[0, 1\]"),
        (lambda: viz.plot_valley_width(widths, rise=0.3), r"among \[0.05, 0.1\]"),
        (lambda: viz.plot_bifurcation_diagram(live, scale="log"), "symlog"),
        (lambda: viz.plot_loss_change(change, scale="log"), "symlog"),
        (lambda: viz.plot_sharpness(sharp, variable="flatness"), "among .*'keskar'"),
        (lambda: viz.plot_attractor_diagram(frozen, variable="theta"), "projection, loss, eigenvalue, got 'theta'"),
        (lambda: viz.plot_attractor_diagram(frozen, against="step"), "one of control, amplitude, got 'step'"),
        (lambda: viz.plot_plane_slice(plane, scale="symlog"), "log"),
        (lambda: viz.plot_path(path, color_by="loss"), "off_plane"),
    ):
        with pytest.raises(ValueError, match=allowed):
            call()


def test_letters_stand_outside_each_axes(new_axes):
    axes = new_axes(2, 2)
    viz.panel_letters(axes)
    assert [ax.texts[0].get_text() for ax in axes.flat] == ["(a)", "(b)", "(c)", "(d)"]
    viz.panel_letters({"left": axes[0, 0]}, start="e")
    assert axes[0, 0].texts[1].get_text() == "(e)"
    with pytest.raises(ValueError, match="at most 1"):
        viz.panel_letters(axes, start="z")


def test_style_is_a_context():
    rc = matplotlib.rcParams["font.size"]
    with viz.style():
        assert matplotlib.rcParams["font.size"] == 8
    assert matplotlib.rcParams["font.size"] == rc


def test_importing_viz_loads_no_matplotlib_and_plots_load_no_torch():
    code = (
        "import sys, viz; assert 'matplotlib' not in sys.modules\n"
        "[getattr(viz, name) for name in viz.__all__]; assert callable(viz.style)\n"
        "assert not {'torch', 'h5py', 'landscape', 'dynloss'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
