"""What is drawn equals what the Dataset holds."""

import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import to_rgba

import viz
from viz.axes import log_axis
from viz.bifurcation import PERIODS
from viz.style import ONSET, THRESHOLD


def drawn(ax, text):
    """Data of the one line with this entry in the legend."""
    (line,) = [line for line in ax.lines if line.get_label() == text]
    return line


def vertical_lines(ax):
    return [line.get_xdata()[0] for line in ax.lines if line.get_color() == ONSET["color"]]


def test_history_panels_hold_the_recorded_values(history, keep):
    weights, loss, accuracy = keep(viz.plot_history(history))
    for i in range(3):
        np.testing.assert_array_equal(drawn(weights, f"class {i}").get_ydata(), history.class_weight.isel({"class": i}))
    np.testing.assert_array_equal(loss.lines[0].get_xydata(), np.stack([history.step, history.loss], axis=1))
    np.testing.assert_array_equal(drawn(accuracy, "training").get_ydata(), history.accuracy)
    np.testing.assert_array_equal(drawn(accuracy, "validation").get_ydata(), history.validation_accuracy)
    assert (loss.get_yscale(), accuracy.get_yscale()) == ("log", "linear")
    assert [ax.get_xlabel() for ax in (weights, loss, accuracy)] == ["", "", "Step (updates)"]
    assert (loss.get_ylabel(), accuracy.get_ylabel()) == ("Loss", "Accuracy")


def test_history_draws_in_given_axes(history, onsets, new_axes):
    axes = new_axes(2)
    given = viz.plot_history(history, axes, variable=["loss", "gradient_norm"], onsets=onsets)
    assert list(given) == list(axes)
    assert vertical_lines(axes[0]) == vertical_lines(axes[1]) == [12, 30]
    with pytest.raises(ValueError, match="one axes for each of"):
        viz.plot_history(history, axes, variable=["loss"])


def test_no_validation_set_means_one_accuracy_line(history, new_axes):
    ax = viz.plot_history(history.drop_vars("validation_accuracy"), new_axes(), variable="accuracy")
    assert len(ax.lines) == 1


def test_only_onsets_among_the_drawn_steps_are_drawn(history, onsets, new_axes):
    ax = viz.plot_history(history.sel(step=slice(20, 39)), new_axes(), onsets=onsets)
    assert vertical_lines(ax) == [30]


def test_eigenvalues_are_points_with_doubtful_ones_hollow(eigs, keep):
    ax = keep(viz.plot_eigenvalues(eigs))
    filled = drawn(ax, r"$\lambda_{1}$")
    kept = np.arange(9) != 6
    np.testing.assert_array_equal(filled.get_ydata(), eigs.eigenvalue[kept, 0])
    np.testing.assert_array_equal(filled.get_xdata(), eigs.step[kept])
    hollow = [line.get_xydata() for line in ax.lines if line.get_markerfacecolor() == "white" and len(line.get_xdata())]
    np.testing.assert_array_equal(np.concatenate(hollow), [[22, eigs.eigenvalue[6, 0]], [15, eigs.eigenvalue[3, 1]]])
    threshold = drawn(ax, "stability threshold")
    np.testing.assert_array_equal(threshold.get_ydata(), eigs.threshold)
    assert threshold.get_color() == THRESHOLD["color"]
    assert threshold.is_dashed()


def test_lines_break_where_sampling_pauses(eigs, new_axes):
    two_windows = eigs.assign_coords(step=[0, 1, 2, 3, 500, 501, 502, 503, 504])
    joined = viz.plot_eigenvalues(two_windows, new_axes()).lines[0].get_ydata()
    assert np.flatnonzero(np.isnan(joined)).tolist() == [4]
    joined = viz.plot_eigenvalues(eigs, new_axes()).lines[0].get_ydata()  # every 5 steps, then every step: no pause
    assert not np.isnan(joined).any()


def test_unknown_threshold_is_not_drawn(eigs, new_axes):
    ax = viz.plot_eigenvalues(eigs.assign(threshold=eigs.threshold * np.nan), new_axes())
    assert "stability threshold" not in ax.get_legend_handles_labels()[1]


def test_spectral_densities_stand_on_a_logarithmic_axis_with_their_standard_errors(spectrum, keep):
    ax = keep(viz.plot_spectral_density(spectrum))
    for row, text in enumerate(["step 0", "step 1,000", "step 2,000"]):
        density = spectrum.density[row].values
        np.testing.assert_array_equal(drawn(ax, text).get_xydata(), np.stack([spectrum.eigenvalue, density], axis=1))
        edges = ax.collections[row].get_paths()[0].vertices
        at_peak = np.unique(edges[np.isclose(edges[:, 0], 3), 1])
        np.testing.assert_allclose(at_peak, density[np.isclose(spectrum.eigenvalue, 3)] * [0.8, 1.2])
    single = 1 / (20 * 0.1 * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(drawn(ax, "one eigenvalue").get_ydata(), single)
    np.testing.assert_allclose(ax.get_ylim(), (single / 10, 2 * spectrum.density.max()))
    assert ax.get_yscale() == "log"
    assert ax.get_xlabel() == "Eigenvalue of the Hessian"
    assert len({to_rgba(line.get_color()) for line in ax.lines}) == 4


def test_one_spectral_density_alone_or_chosen_and_what_a_dataset_lacks_is_not_drawn(spectrum, new_axes):
    for ax in (
        viz.plot_spectral_density(spectrum.sel(step=1000), new_axes()),
        viz.plot_spectral_density(spectrum, new_axes(), steps=1000),
    ):
        np.testing.assert_array_equal(drawn(ax, "step 1,000").get_ydata(), spectrum.density[1])
        assert (len(ax.lines), len(ax.collections)) == (2, 1)
    bare = spectrum.drop_vars("standard_error").drop_attrs().sel(step=1000, drop=True)
    ax = viz.plot_spectral_density(bare, new_axes())
    assert (len(ax.lines), len(ax.collections)) == (1, 0)
    assert not ax.get_legend_handles_labels()[1]


def test_steps_whose_density_is_not_known_and_many_steps_are_drawn(spectrum, keep, new_axes):
    ax = keep(viz.plot_spectral_density(spectrum.where(spectrum.step != 1000)))
    assert np.isfinite(ax.get_ylim()).all()
    assert np.isfinite(viz.plot_spectral_density(spectrum * np.nan, new_axes()).get_ylim()).all()
    many = spectrum.isel(step=[0] * 30).assign_coords(step=np.arange(30))
    ax = viz.plot_spectral_density(many, new_axes(), band=False)
    assert len(ax.lines) == 31
    assert ax.get_legend_handles_labels()[1] == ["step 0", "step 7", "step 14", "step 22", "step 29", "one eigenvalue"]


def test_gradient_fractions_and_norms(grads, keep):
    fraction, norm = keep(viz.plot_gradient_decomposition(grads))
    np.testing.assert_array_equal(drawn(fraction, "both").get_ydata(), grads.dominant_fraction)
    share = np.abs(grads.component[:, 1]) / grads.gradient_norm
    np.testing.assert_allclose(drawn(fraction, "$v_{2}$").get_ydata(), share, rtol=1e-15)
    for text, name in (("whole", "gradient_norm"), ("inside", "inside_norm"), ("outside", "bulk_norm")):
        np.testing.assert_array_equal(drawn(norm, text).get_ydata(), grads[name])
    assert norm.get_yscale() == "log"


def test_one_kind_of_gradient_panel_in_a_given_axes(grads, new_axes):
    ax = new_axes()
    assert viz.plot_gradient_decomposition(grads, ax, kind="norm") is ax
    assert ax.get_yscale() == "log"


@pytest.mark.parametrize("vector", ["update", "displacement"])
def test_decompositions_of_the_motion_are_named_as_such_and_begin_where_they_are_known(grads, vector, onsets, keep):
    moved = grads.rename(gradient_norm=f"{vector}_norm")
    for name in (f"{vector}_norm", "inside_norm", "bulk_norm", "dominant_fraction"):
        moved[name][:4] = 0.0 if vector == "displacement" else np.nan
    fraction, norm = keep(viz.plot_gradient_decomposition(moved, onsets=onsets))
    assert vector in fraction.get_ylabel().lower()
    assert vector in norm.get_ylabel().lower()
    whole = drawn(norm, "whole").get_ydata()
    np.testing.assert_array_equal(whole[4:], moved[f"{vector}_norm"][4:])
    assert np.isnan(whole[:4]).all()  # neither unknown values nor zeros stand on a logarithmic axis
    assert vertical_lines(norm) == ([12, 30] if vector == "displacement" else [30])
    unknown = moved.where(moved.step > 99)
    keep(viz.plot_gradient_decomposition(unknown[["component", *set(moved) - {"component"}]], kind="fraction"))


def test_errors_of_components_are_bars_around_their_shares(grads, new_axes):
    error = 0.1 * grads.gradient_norm * xr.ones_like(grads.component)
    error[3, 1] = np.nan
    ax = viz.plot_gradient_decomposition(grads.assign(component_error=error), new_axes())
    first, second = ax.collections
    share = np.abs(grads.component) / grads.gradient_norm
    spans = np.array([segment[:, 1] for segment in first.get_segments()])
    np.testing.assert_allclose(spans, np.clip(np.stack([share[:, 0] - 0.1, share[:, 0] + 0.1], axis=1), 0, 1))
    at = [segment[0, 0] for segment in second.get_segments() if len(segment)]
    assert at == np.delete(grads.step.values, 3).tolist()
    assert not viz.plot_gradient_decomposition(grads, new_axes()).collections


def test_loss_changes_are_dots_of_the_whole_and_its_parts(change, keep):
    ax = keep(viz.plot_loss_change(change, scale="symlog", linear_within=1e-3))
    for text, name in (("whole", "change"), ("by the motion", "motion_part"), ("by the moving landscape", "time_part")):
        np.testing.assert_array_equal(drawn(ax, text).get_ydata(), change[name])
        np.testing.assert_array_equal(drawn(ax, text).get_xdata(), change.step)
    assert ax.get_yscale() == "symlog"


def test_sharpness_has_a_panel_for_each_definition_with_its_error(sharp, new_axes, keep):
    eigenvalue, sam, average = keep(viz.plot_sharpness(sharp))
    assert [ax.get_ylabel() for ax in (eigenvalue, sam, average)] == [
        "Largest eigenvalue", "One-step sharpness", "Average sharpness"
    ]  # fmt: skip
    hollow = [line.get_xydata() for line in eigenvalue.lines if line.get_markerfacecolor() == "white"]
    np.testing.assert_array_equal(np.concatenate(hollow), [[20, sharp.largest_eigenvalue[2]]])
    np.testing.assert_array_equal(sam.lines[0].get_ydata(), sharp.sam)
    assert [ax.get_yscale() for ax in (eigenvalue, sam, average)] == ["linear", "log", "linear"]  # some are negative
    spans = np.array([segment[:, 1] for segment in average.collections[0].get_segments()])
    np.testing.assert_allclose(spans, np.stack([sharp.average - 0.02, sharp.average + 0.02], axis=1))
    axes = new_axes(2)
    given = viz.plot_sharpness(sharp, axes, variable=["sam", "average"], log=False)
    assert list(given) == list(axes)
    assert axes[0].get_yscale() == "linear"
    with pytest.raises(ValueError, match="one axes for each of"):
        viz.plot_sharpness(sharp, axes, variable=["sam"])


def test_small_numbers_on_a_logarithmic_axis_are_digits_and_powers_of_ten(new_axes):
    ax = new_axes()
    ax.plot([0, 1], [2e-4, 7e-4])
    log_axis(ax)
    ax.figure.canvas.draw()
    shown = [tick.get_text() for tick in ax.get_yticklabels(which="both") if tick.get_text()]
    assert r"$4\times10^{-4}$" in shown
    assert not any("^{-3." in text for text in shown)


def test_valley_width_with_its_two_yardsticks(widths, keep):
    ax = keep(viz.plot_valley_width(widths, mode=1, rise=0.1))
    at = widths.isel(mode=1, rise=1)
    values = [line.get_ydata() for line in ax.lines]
    for name in ("width", "harmonic_width", "stable_width"):
        assert any(np.array_equal(v, at[name]) for v in values), name
    assert len(viz.plot_valley_width(widths, ax).lines) > len(values)  # all rises by default


def test_plane_contours_are_the_loss_and_its_axes(plane, keep):
    levels = np.linspace(0.3, 1.5, 13)
    ax = keep(viz.plot_plane_slice(plane, levels=levels))
    filled = ax.collections[0]
    np.testing.assert_array_equal(filled.get_array(), (levels[1:] + levels[:-1]) / 2)
    assert ax.get_xlim() == (-1, 1)
    assert ax.get_ylim() == (-0.5, 0.5)
    level_line = next(p for p, v in zip(ax.collections[1].get_paths(), levels, strict=True) if np.isclose(v, 0.5))
    alpha, beta = level_line.vertices.T
    interpolated = 0.3 + np.interp(np.abs(alpha), plane.alpha[3:], plane.alpha[3:] ** 2)
    interpolated += 0.5 * np.interp(np.abs(beta), plane.beta[2:], plane.beta[2:] ** 2)
    np.testing.assert_allclose(interpolated, 0.5, atol=1e-12)
    assert ax.get_title() == "step 9,050"


def test_planes_with_holes_and_flat_planes_are_drawn(plane, keep):
    holes = plane.copy(deep=True)
    holes.loss[0, :2] = np.nan
    holes.loss[-1, -1] = np.inf
    for one in (holes, plane * 0 + 1, plane * np.nan):
        keep(viz.plot_plane_slice(one))
    keep(viz.plot_plane_slice(holes, scale="log", levels=8))
    with pytest.raises(ValueError, match="positive loss"):
        viz.plot_plane_slice(plane - 1, scale="log")


def test_path_points_lie_where_the_states_do(plane, path, keep):
    ax = viz.plot_plane_slice(plane)
    assert viz.plot_path(path, ax, color_by="off_plane", colorbar=True) is ax
    keep(ax)
    offsets = ax.collections[-1].get_offsets()
    np.testing.assert_array_equal(offsets, np.stack([path.alpha, path.beta], axis=1))
    np.testing.assert_array_equal(ax.collections[-1].get_array(), path.off_plane)
    ends = {line.get_marker(): line.get_xydata()[0].tolist() for line in ax.lines if line.get_marker() in "os"}
    assert ends == {"o": [path.alpha[0], path.beta[0]], "s": [path.alpha[-1], path.beta[-1]]}


def test_line_slice(line, keep):
    ax = keep(viz.plot_line_slice(line))
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), np.stack([line.alpha, line.loss], axis=1))


def test_bifurcation_points_have_the_colour_of_their_period(live, keep):
    ax = keep(viz.plot_bifurcation_diagram(live))
    color = {to_rgba(c): name for name, c in PERIODS.items()}
    found = {}
    for artist in ax.lines[1:]:
        for step, value in artist.get_xydata():
            found[int(step)] = color[to_rgba(artist.get_color())]
            assert np.isnan(value) or value == live.change.sel(step=step)
    names = ["window not full"] * 2 + ["period 1"] * 2 + ["period 2"] * 2
    names += ["period 4", "other period", "other period", "aperiodic", "aperiodic", "period 1"]
    assert [found[i] for i in range(12)] == names


def test_bifurcation_diagram_on_a_symmetric_logarithmic_axis(live, new_axes):
    assert viz.plot_bifurcation_diagram(live, new_axes(), scale="symlog").get_yscale() == "symlog"


def test_attractor_holds_every_iterate_at_its_control(frozen, keep):
    ax = keep(viz.plot_attractor_diagram(frozen))
    expected = [[c, v] for c, row in zip(frozen.control, frozen.projection, strict=True) for v in row]
    np.testing.assert_array_equal(np.concatenate([artist.get_xydata() for artist in ax.lines]), expected)
    assert ax.get_xlabel() == "Phase"


def test_attractor_against_another_coordinate_and_its_sharpness_beside_the_threshold(frozen, keep):
    ax = keep(viz.plot_attractor_diagram(frozen, variable="eigenvalue", against="amplitude"))
    points = np.concatenate([artist.get_xydata() for artist in ax.lines[:3]])
    np.testing.assert_array_equal(points, [[10, 1.5], [30, 1.9], [70, 2.2]])
    colors = [to_rgba(artist.get_color()) for artist in ax.lines[:3]]
    assert colors == [to_rgba(PERIODS[kind]) for kind in ("period 1", "period 2", "aperiodic")]
    threshold = drawn(ax, "stability threshold")
    np.testing.assert_array_equal(threshold.get_xydata(), [[10, 2], [30, 2], [70, 2.5]])
    assert threshold.is_dashed()
    assert ax.get_xlabel() == "Amplitude"
    bare = viz.plot_attractor_diagram(frozen.drop_vars("threshold"), variable="eigenvalue")
    assert len(keep(bare).lines) == 3


def test_exponents_are_lines_that_end_where_they_are_not_finite(growth, keep, new_axes):
    ax = keep(viz.plot_lyapunov_exponents(growth))
    for mode in (0, 1):
        line = drawn(ax, rf"$\Lambda_{{{mode + 1}}}$")
        np.testing.assert_array_equal(line.get_xydata(), np.stack([growth.step, growth.exponent[:, mode]], axis=1))
    assert np.isfinite(ax.get_ylim()).all()
    assert ax.get_ylabel() == "Lyapunov exponent\n(1/step)"
    assert ax.lines[0].get_ydata() == [0, 0]
    onsets = growth.isel(step=0, mode=0, drop=True).assign(onset_step=("onset", [8400, 8503]))
    assert vertical_lines(viz.plot_lyapunov_exponents(growth, new_axes(), onsets=onsets)) == [8503]


def test_onset_curvature_is_relative_to_the_threshold(curved, keep):
    ax = keep(viz.plot_onset_curvature(curved))
    np.testing.assert_allclose(drawn(ax, "midpoint").get_ydata(), [0.94, 0.96])
    np.testing.assert_allclose(drawn(ax, "sharper iterate").get_ydata(), [1.1, 1.125])
    np.testing.assert_allclose(drawn(ax, "flatter iterate").get_ydata(), [0.8, 0.8])
    placed = viz.plot_onset_curvature(curved.assign_coords(onset_step=("onset", [4210, 8930])), ax)
    assert placed.lines[-2].get_xdata().tolist() == [4210, 8930]


def test_onsets_without_a_figure_and_with_missing_ones(onsets, keep):
    ax = keep(viz.plot_onsets(onsets.assign(onset_step=("onset", [12.0, np.nan]))))
    assert vertical_lines(ax) == [12]


def test_onset_sharpness_is_drawn_at_its_learning_rate_beside_the_threshold(rated, keep, new_axes):
    ax = keep(viz.plot_onset_sharpness(rated, by="loss"))
    for i, name in enumerate(["one", "two"]):
        np.testing.assert_allclose(drawn(ax, name).get_xydata(), [[rated.learning_rate[i], rated.eigenvalue[i]]])
    np.testing.assert_allclose(drawn(ax, "stability threshold").get_xydata(), [[0.5, 4], [2, 1]])
    assert ax.get_xscale() == ax.get_yscale() == "log"
    alone = viz.plot_onset_sharpness(rated, new_axes())
    np.testing.assert_allclose(drawn(alone, "onset").get_xdata(), [2, 0.5])
    two = rated.assign_coords(learning_rate=("onset", [2.0, 2.0]))  # of two optimisers: no line joins their thresholds
    assert len(viz.plot_onset_sharpness(two, new_axes(), by="loss").lines) == 4


def test_accuracies_are_points_with_their_errors_and_a_tick_at_every_width(accuracies, keep):
    ax = keep(viz.plot_accuracy(accuracies, text="DCE"))
    points, _, (bars,) = ax.containers[0]
    np.testing.assert_allclose(points.get_xydata(), np.stack([accuracies.width, accuracies.accuracy], axis=1))
    np.testing.assert_allclose([bar[:, 1] for bar in bars.get_segments()], [[0.39, 0.41], [0.48, 0.52], [0.67, 0.73]])
    viz.plot_accuracy(accuracies.drop_vars("standard_error").assign_coords(width=[5, 20, 50]), ax, text="CE")
    assert ax.get_xticks().tolist() == [5, 10, 20, 50]
    assert [entry.get_text() for entry in ax.get_legend().get_texts()] == ["DCE", "CE"]


def test_a_phase_diagram_has_a_cell_for_each_pair_and_a_line_around_those_above_the_static_loss(phases, keep, new_axes):
    ax = keep(viz.plot_phase_diagram(phases, limits=(0, 1)))
    cells = ax.collections[0]
    np.testing.assert_array_equal(np.ma.filled(cells.get_array(), np.nan), phases.accuracy)
    assert cells.get_clim() == (0, 1)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["2", "70"]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["100", "1000", "5000"]
    drawn_lines = {tuple(map(tuple, segment)) for lines in ax.collections[1:3] for segment in lines.get_segments()}
    upright = {((1, 0), (1, 1)), ((2, 0), (2, 1)), ((1, 1), (1, 2)), ((2, 1), (2, 2))}
    flat = {((0, 1), (1, 1)), ((1, 1), (2, 1)), ((2, 1), (3, 1))}
    assert drawn_lines == upright | flat
    alone = viz.plot_phase_diagram(phases.drop_vars("static_accuracy"), new_axes(), colorbar=False)
    assert len(alone.collections) == 1


def test_regions_have_the_colour_of_their_class_and_samples_lie_on_them(regions, keep):
    samples = xr.Dataset(
        {"inputs": (("sample", "feature"), [[0.5, 1], [1, 0], [-1, 0]]), "targets": ("sample", [0, 1, 1])}
    )
    ax = keep(viz.plot_regions(regions, samples=samples))
    mesh = ax.collections[0]
    np.testing.assert_array_equal(mesh.get_array(), regions.predicted)
    shown = mesh.cmap(mesh.norm(regions.predicted.values))
    assert len(np.unique(shown.reshape(-1, 4), axis=0)) == 4
    np.testing.assert_array_equal(drawn(ax, "class 1").get_xydata(), [[1, 0], [-1, 0]])
    assert ax.get_aspect() == 1
