"""The quickest way to multiply with the curvature matrices of an objective, found by a short race and remembered."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from landscape.product_ways import MATRICES, Linear, Way, part

N_PRODUCTS = 12  # that a linearization serves on average, about what Lanczos needs
ENOUGH, MOST_ROUNDS = 0.01, 4  # seconds, and rounds, of timing two ways in turn
SMALL = 0.05  # seconds: what takes longer is timed well enough by two products, and gains nothing from sharing a graph
TRACED_FROM = 5.0  # seconds: a trace takes some 10 s, however small the tensors
GROWTH, MOST_ROWS = 4, 16  # rows that share a graph: four times as many, as long as that pays
TOGETHER = "columns together"


class Situation(NamedTuple):
    """What a decision depends on; rows, columns and samples are rounded up to powers of two."""

    matrix: str
    rows: int
    columns: int
    samples: int
    streamed: bool
    dtype: torch.dtype


def choose(product) -> Way:
    """The way for a new `landscape.products.CurvatureProduct`: that of its objective, or one found to be the quickest.

    What is found is kept in the ``product_ways`` of the objective, and serves similar situations.
    """
    objective = product.objective
    if objective.product != "auto":
        return Way.parse(objective.product)
    way = _known(objective.product_ways, product.situation)
    if way is None:
        way = _race(product)
        if way is None:  # nothing finite to compare, so nothing is decided
            return Way("kept graph")
        objective.product_ways[product.situation] = str(way)
    return way


def batches_columns(product, linear: Linear, columns: torch.Tensor) -> bool:
    """Whether columns (k, …) are multiplied together, in the way of ``product``, or one after the other.

    Always the latter where the objective has a way of its own, to the last bit.
    """
    if product.objective.product != "auto":
        return False
    ways, situation = product.objective.product_ways, product.situation._replace(columns=power_of_two(len(columns)))
    if situation not in ways:
        ways[situation] = TOGETHER if _batching_pays(linear, columns[:8]) else "column by column"
    return ways[situation] == TOGETHER


def power_of_two(n: int) -> int:
    """The least power of two that is not less than `n`."""
    return 1 << max(n - 1, 0).bit_length()


def _known(ways: dict[Situation, str], here: Situation) -> Way | None:
    """The way decided for as many rows, or for others where that settles it."""
    for there, words in ways.items():
        if there.columns == 1 and there._replace(rows=here.rows) == here:
            way = Way.parse(words)
            if here.rows <= there.rows or way.rows is not None:
                return way
    return None


@dataclass
class _Entrant:
    way: Way
    build: float  # seconds, of all that one product costs beforehand, over N_PRODUCTS
    multiply: Callable[[], torch.Tensor] | None
    product: float = torch.inf  # seconds

    @property
    def cost(self) -> float:
        """Seconds a row and product."""
        return (self.build + self.product) / self.way.rows


class _Race:
    """Ways tried on the first rows of a product, each against the best so far; they must agree on what Hv is."""

    def __init__(self, product, points: torch.Tensor, steps: torch.Tensor):
        self.product, self.points, self.steps = product, points, steps
        generator = torch.Generator().manual_seed(0)
        self.vectors = torch.randn(points.shape, generator=generator, dtype=torch.float64).to(points)
        self.best, self.reference, self.errors = None, None, []
        # What else runs on the machine must not decide; with one thread its time can be told apart.
        alone = points.device.type == "cpu" and torch.get_num_threads() == 1
        self.clock = time.thread_time if alone else time.perf_counter

    @property
    def row_product(self) -> float:
        """Seconds that the best way takes for the product of one row."""
        return self.best.product / self.best.way.rows if self.best else torch.inf

    def run(self, method: str, rows: int) -> bool:
        """Whether this way is the best so far."""
        try:
            entrant = self._enter(Way(method, rows))
        except Exception as error:  # whatever a model, or torch, cannot do in this way
            self.errors.append(error)
            return False
        if entrant is None:
            return False
        if self.best and max(entrant.product, self.best.product) < SMALL:
            self._time_in_turn(entrant, self.best)
        if entrant.product >= SMALL:
            entrant.multiply = None  # not two large graphs at a time
        if self.best and entrant.cost >= self.best.cost:
            return False
        self.best = entrant
        return True

    def _enter(self, way: Way) -> _Entrant | None:
        """The entrant after a first product or two; None if it is far behind or gives other products."""
        situation = self.product.situation
        build = MATRICES[situation.matrix][way.method]
        arguments = part(
            self.product.objective, self.points[: way.rows], self.steps[: way.rows], self.product.first_batch
        )
        seconds, linear = self._seconds(lambda: build(*arguments))
        vectors = self.vectors[: way.rows].reshape(arguments[1].shape)
        entrant = _Entrant(way, seconds if situation.streamed else seconds / N_PRODUCTS, lambda: linear.one(vectors))
        for _ in range(2):  # the first product is slower than those that follow
            seconds, products = self._seconds(entrant.multiply)
            entrant.product = min(entrant.product, seconds)
            if self.best and entrant.cost > 2 * self.best.cost:
                return None
        return entrant if self._agrees(products.reshape(way.rows, -1)) else None

    def _time_in_turn(self, *entrants: _Entrant) -> None:
        times, start = [], self.clock()
        while len(times) < MOST_ROUNDS and self.clock() - start < ENOUGH:
            times.append([self._seconds(entrant.multiply)[0] for entrant in entrants])
        for entrant, taken in zip(entrants, zip(*times, strict=True), strict=True):
            entrant.product = min(taken)

    def _seconds(self, function: Callable):
        start = self.clock()
        result = function()
        if self.points.device.type != "cpu":
            torch.accelerator.synchronize(self.points.device)
        return self.clock() - start, result

    def _agrees(self, products: torch.Tensor) -> bool:
        """Whether products (rows, n) are those of the ways before; the first ones are taken as they are if finite."""
        if self.reference is None:
            self.reference = products
            return bool(products.isfinite().all())
        common = min(len(products), len(self.reference))
        agrees = agree(products[:common], self.reference[:common])
        if agrees and len(products) > common:
            self.reference = products
        return agrees


def agree(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether products (rows, n) are the same but for rounding, which in float32 may switch a few ReLUs."""
    tolerance = min(30 * torch.finfo(expected.dtype).eps ** 0.5, 0.1)
    return bool(((found - expected).norm(dim=-1) <= tolerance * expected.norm(dim=-1)).all())


def _race(product) -> Way | None:
    """The best way; None where products are not finite."""
    points = product.points
    order = points.isfinite().all(1).nonzero().flatten()  # rows that can be compared
    if not len(order):
        return None
    race = _Race(product, points[order], product.steps[order.cpu()])
    rows, most = 1, min(len(order), MOST_ROWS)
    for method in ("kept graph", "lean graph"):
        race.run(method, rows)
        while rows < most and race.row_product < SMALL and race.run(method, min(GROWTH * rows, most)):
            rows = race.best.way.rows
    streamed = product.situation.streamed
    if race.best is None or (streamed and race.row_product > SMALL):  # to load forward mode alone takes a second
        race.run("jvp", rows)
    if not streamed and (race.best is None or race.row_product > TRACED_FROM):
        race.run("linearize", rows)
    if race.best is None:
        if race.reference is None:
            raise race.errors[0]
        return None
    # A way that was best with all rows has met no limit.
    return Way(race.best.way.method) if race.best.way.rows == len(order) else race.best.way


def _batching_pays(linear: Linear, columns: torch.Tensor) -> bool:
    start = time.perf_counter()
    expected = torch.stack([linear.one(column) for column in columns])
    loop = time.perf_counter() - start
    try:
        for _ in range(2):  # the first one is slower
            start = time.perf_counter()
            found = linear.many(columns)
            batched = time.perf_counter() - start
            if batched < loop:
                return agree(found.flatten(1), expected.flatten(1))
            if batched > 2 * loop:
                break
    except Exception:  # not every operation can be batched
        pass
    return False
