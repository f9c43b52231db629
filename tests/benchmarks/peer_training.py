"""Training by peers: JAX with the steps inside `fori_loop`, and the usual loop of PyTorch; one network at a time.

Both descend the dynamical cross entropy with the class weights of each step from a table, and return the last θ.
"""

from __future__ import annotations

import numpy as np
import torch


def jax_fori_loop(problem):
    """A function of no arguments: θ after the steps, compiled before it is timed."""
    import jax

    jax.config.update("jax_enable_x64", True)
    jnp, dtype = jax.numpy, str(problem.inputs.dtype).removeprefix("torch.")
    inputs, targets = jnp.asarray(problem.inputs.numpy()), jnp.asarray(problem.targets.numpy())
    table = jnp.asarray(problem.class_weights.astype(dtype))
    start = [jnp.asarray(p.detach().numpy()) for p in problem.models[0].parameters()]

    def loss(params, weights):
        w1, b1, w2, b2 = params
        outputs = jax.nn.relu(inputs @ w1.T + b1) @ w2.T + b2
        log_p = jax.nn.log_softmax(outputs)
        return -jnp.mean(weights[targets] * jnp.take_along_axis(log_p, targets[:, None], 1)[:, 0])

    gradient, rate = jax.grad(loss), jnp.asarray(problem.learning_rate, dtype)

    def step(t, params):
        return [p - rate * g for p, g in zip(params, gradient(params, table[t]), strict=True)]

    train = jax.jit(lambda params: jax.lax.fori_loop(0, problem.n_steps, step, params))

    def solve():
        return np.concatenate([np.asarray(p).reshape(-1) for p in jax.block_until_ready(train(start))])[None]

    solve()
    return solve


def torch_loop(problem):
    """Autograd and `torch.optim.SGD`, as a training script has them."""
    loss = problem.loss

    def solve():
        model = problem.models_anew()[0]
        optimizer = torch.optim.SGD(model.parameters(), lr=problem.learning_rate)
        for step in range(problem.n_steps):
            optimizer.zero_grad()
            loss(model(problem.inputs), problem.targets, step).backward()
            optimizer.step()
        return torch.nn.utils.parameters_to_vector(model.parameters()).detach().numpy()[None]

    return solve
