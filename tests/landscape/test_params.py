"""Named tensors and the flat vector: what goes in comes out, in the order of the model's own parameters."""

import numpy as np
import pytest
import torch

from landscape import ParamLayout


def small_net(activation="ReLU"):
    return torch.nn.Sequential(torch.nn.Linear(3, 4), getattr(torch.nn, activation)(), torch.nn.Linear(4, 2))


@pytest.fixture
def layout():
    return ParamLayout(("scalar", "matrix", "cube"), ((), (2, 3), (2, 1, 2)))


@pytest.mark.parametrize("lead", [(), (5,), (2, 3)])
def test_unflatten_cuts_rows_in_the_order_of_the_names(layout, lead):
    params = torch.randn(*lead, 11)
    tensors = layout.unflatten(params)
    assert list(tensors) == ["scalar", "matrix", "cube"]
    expected = np.split(params.numpy(), [1, 7], axis=-1)
    for tensor, part, shape in zip(tensors.values(), expected, layout.shapes, strict=True):
        np.testing.assert_array_equal(tensor.numpy(), part.reshape(lead + shape))


def test_flatten_undoes_unflatten_from_a_mapping_in_any_order_and_from_a_sequence(layout):
    params = torch.randn(11, dtype=torch.float64)
    tensors = layout.unflatten(params)
    backwards = dict(reversed(tensors.items()), another=torch.zeros(4))
    assert torch.equal(layout.flatten(backwards), params)
    assert torch.equal(layout.flatten(iter(tensors.values())), params)


def test_views_carry_gradients(layout):
    params = torch.arange(11.0, requires_grad=True)
    (3 * layout.unflatten(params)["matrix"]).sum().backward()
    np.testing.assert_array_equal(params.grad.numpy(), [0] + [3] * 6 + [0] * 4)


def test_a_model_is_flattened_in_the_order_of_pytorch_into_a_copy():
    model = small_net()
    layout = ParamLayout.of(model)
    params = layout.flatten_model(model)
    assert torch.equal(params, torch.nn.utils.parameters_to_vector(model.parameters()))
    assert not params.requires_grad
    params.zero_()
    assert all(p.abs().sum() > 0 for p in model.parameters())
    assert layout.n_params == 26
    assert layout.names == ("0.weight", "0.bias", "2.weight", "2.bias")
    assert layout.offsets == (0, 12, 16, 24)


def test_frozen_parameters_are_no_part_of_theta():
    model = small_net()
    model[0].requires_grad_(False)
    layout = ParamLayout.of(model)
    assert layout.names == ("2.weight", "2.bias")
    assert torch.equal(layout.flatten_model(model), torch.cat([model[2].weight.reshape(-1), model[2].bias]))
    with pytest.raises(ValueError, match=r"requires_grad_\(True\)"):
        ParamLayout.of(model.requires_grad_(False))


def test_tied_parameters_count_once():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    model[1].weight = model[0].weight
    layout = ParamLayout.of(model)
    assert layout.names == ("0.weight", "0.bias", "1.bias")
    assert layout.flatten(model.state_dict()).shape == (15,)  # a state_dict names the tied tensor twice


def test_json_brings_the_same_layout_back(layout):
    assert ParamLayout.from_json(layout.to_json()) == layout
    assert ParamLayout.from_json('[["w", [2, 3]], ["b", []]]') == ParamLayout(("w", "b"), ((2, 3), ()))


@pytest.mark.parametrize(
    ("names", "shapes", "said"),
    [
        (("w", "b"), ((2, 3), (2,)), ""),
        (("w",), ((2, 3),), "b [2] is missing"),
        (("w", "b", "c"), ((2, 3), (2,), (1,)), "c has no counterpart"),
        (("w", "b"), ((3, 2), (2,)), "w [2, 3] stands against w [3, 2]"),
        (("b", "w"), ((2,), (2, 3)), "w [2, 3] stands against b [2]"),
    ],
)
def test_difference_names_the_first_parameter_that_differs(names, shapes, said):
    layout, other = ParamLayout(("w", "b"), ((2, 3), (2,))), ParamLayout(names, shapes)
    assert layout.difference(other) == said
    assert (layout == other) == (said == "")


@pytest.mark.parametrize("n", [10, 12, 0])
def test_a_vector_of_another_length_is_refused(layout, n):
    with pytest.raises(ValueError, match=r"11 entries .* got \(4, "):
        layout.unflatten(torch.zeros(4, n))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"matrix": torch.zeros(3, 2)}, r"matrix must have shape \(2, 3\), got \(3, 2\)"),
        ({"scalar": torch.zeros(1)}, r"scalar must have shape \(\), got \(1,\)"),
        ({"cube": torch.zeros(5)}, "cube must have shape"),
    ],
)
def test_a_tensor_of_another_shape_is_refused(layout, change, message):
    tensors = layout.unflatten(torch.zeros(11)) | change
    with pytest.raises(ValueError, match=message):
        layout.flatten(tensors)
    with pytest.raises(ValueError, match=message):
        layout.flatten(list(tensors.values()))


def test_missing_and_surplus_tensors_are_refused(layout):
    tensors = layout.unflatten(torch.zeros(11))
    with pytest.raises(ValueError, match="missing: matrix, cube"):
        layout.flatten({"scalar": tensors["scalar"]})
    with pytest.raises(ValueError, match="3 tensors, got 2"):
        layout.flatten(list(tensors.values())[:2])


def test_names_and_shapes_must_fit_each_other():
    with pytest.raises(ValueError, match="2 names, 1 shapes"):
        ParamLayout(("a", "b"), ((1,),))
    with pytest.raises(ValueError, match="unique"):
        ParamLayout(("a", "a"), ((1,), (1,)))
