"""The workloads: models, data and checkpoints of real descents, all made from seeds."""

import copy
import dataclasses
import functools

import torch
import xarray as xr
from resnet import resnet20

import dynloss
import landscape
from dynloss.kernels import fastest_objective


@dataclasses.dataclass(frozen=True, eq=False)
class Workload:
    """A model, its data and the checkpoints of one descent of the mean cross entropy."""

    name: str
    model: torch.nn.Module
    inputs: torch.Tensor
    targets: torch.Tensor
    checkpoints: xr.Dataset  # params (step, param)
    whole: "Workload | None" = None  # of which this one is a part

    @property
    def dtype(self) -> str:
        return str(self.inputs.dtype).removeprefix("torch.")

    @property
    def n_checkpoints(self) -> int:
        return self.checkpoints.sizes["step"]

    def thinned(self, n_checkpoints: int) -> "Workload":
        """The same with `n_checkpoints` of its checkpoints, evenly spread."""
        rows = torch.linspace(0, self.n_checkpoints - 1, n_checkpoints).round().long()
        part = self.checkpoints.isel(step=rows.numpy())
        return dataclasses.replace(self, checkpoints=part, whole=self)

    def on(self, device: str) -> "Workload":
        """The same on `device`; checkpoints stay on the host."""
        model = copy.deepcopy(self.model).to(device)
        return dataclasses.replace(self, model=model, inputs=self.inputs.to(device), targets=self.targets.to(device))

    def model_at(self, row: int, dtype: torch.dtype | None = None) -> torch.nn.Module:
        """A copy of the model that holds the parameters of checkpoint `row`, as its users would load them."""
        model = copy.deepcopy(self.model)
        params = torch.from_numpy(self.checkpoints.params.values[row])
        torch.nn.utils.vector_to_parameters(params, model.parameters())
        return model.to(dtype or self.inputs.dtype).eval()


@functools.cache
def spiral(name: str, width: int, dtype: torch.dtype) -> Workload:
    """Every fifth step of steps 2000–3000 of plain descent at η = 1; in float32 the float64 checkpoints, rounded."""
    data, model = dynloss.spiral(100, 3, seed=0), dynloss.mlp(2, width, 3, seed=0)
    if dtype == torch.float64:
        objective = fastest_objective(model, dynloss.CrossEntropy(3), data.inputs, data.targets)
        params, saved = objective.layout.flatten_model(model), {}
        for step in range(3000):
            if step >= 2000 and step % 5 == 0:
                saved[step] = params.numpy()
            params = params - objective.gradient(params, step)
        checkpoints = xr.Dataset({"params": (("step", "param"), list(saved.values()))}, {"step": list(saved)})
    else:
        checkpoints = spiral(name, width, torch.float64).checkpoints.astype("float32")
    return Workload(name, model.to(dtype), data.inputs.to(dtype), data.targets, checkpoints)


@functools.cache
def resnet(n_images: int = 256, n_checkpoints: int = 5, steps_between: int = 2) -> Workload:
    """A ResNet-20 on seeded images, batch norm in eval mode, a few steps of gradient descent apart.

    Each class is a smooth pattern under noise. The statistics of batch norm are those of the images at the start.
    """
    torch.manual_seed(0)
    patterns = torch.nn.functional.interpolate(torch.randn(10, 3, 4, 4), size=(32, 32), mode="bilinear")
    targets = torch.arange(n_images) % 10
    inputs = patterns[targets] + 0.5 * torch.randn(n_images, 3, 32, 32)
    model = resnet20()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the plain average of what is seen
    with torch.no_grad():
        model(inputs)
    model.eval()
    layout = landscape.ParamLayout.of(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.005, momentum=0.9)
    params = []
    for step in range(steps_between * (n_checkpoints - 1) + 1):
        if step % steps_between == 0:
            params.append(layout.flatten_model(model).numpy().copy())
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    steps = range(0, steps_between * n_checkpoints, steps_between)
    checkpoints = xr.Dataset({"params": (("step", "param"), params)}, {"step": list(steps)})
    return Workload("W3", model, inputs, targets, checkpoints)
