"""What `benchmarks.kernels` is compared with: neural-tangents (Novak et al. 2020) itself, on this machine, one thread.

    uv run --no-project --python 3.11 --with neural-tangents==0.6.5 --with jax==0.4.30 --with jaxlib==0.4.30 \
      --with "numpy<2" --with "scipy<1.13" benchmarks/kernels_jax.py [--repeats 15] [--dtype float64]

Its releases want an older JAX than a project has, so this file stands alone: it imports nothing of ncdd. A step of KIP
is one jitted function of the batch: kernels, ridge regression as in `ncdd.kernels.kip_loss`, gradient, Adam. CPU time,
the least of repeats; a float32 run has JAX's 64-bit types off, since otherwise constants widen it.
"""

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"  # before JAX is there
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import jax
import jax.numpy as jnp
import numpy as np
from neural_tangents import stax

Array = Any
IN_A_ROW = 3  # times that a turn takes


def images(n: int, dtype: str, seed: int) -> Array:
    """Smooth 28 x 28 images as vectors (n, 784), of the same distribution as those of `benchmarks.kernels`."""
    noise = np.random.default_rng(seed).standard_normal((n, 30, 30))
    smooth = np.mean([noise[:, i : i + 28, j : j + 28] for i in range(3) for j in range(3)], axis=0)
    return jnp.asarray(smooth.reshape(n, 784), dtype)


def fc(depth: int) -> Callable[[Array, Array | None], Array]:
    """The tangent kernel of `ncdd.kernels.fc(depth)`."""
    dense = {"W_std": 2**0.5, "b_std": 0.1}
    hidden = [layer for _ in range(depth) for layer in (stax.Dense(1, **dense), stax.Relu())]
    kernel = stax.serial(*hidden, stax.Dense(1, **dense))[2]
    return lambda x1, x2: kernel(x1, x2, "ntk")


def evaluation(depth: int, dtype: str) -> Callable[[], None]:
    kernel, x1, x2 = jax.jit(fc(depth)), images(100, dtype, 1), images(6000, dtype, 2)
    return lambda: kernel(x1, x2).block_until_ready()


def kip_step(depth: int, n: int, dtype: str) -> Callable[[], None]:
    """A call is one step, from where the last one ended."""
    kernel, x = fc(depth), images(5000, dtype, 0)
    y = jnp.asarray(np.tile(np.eye(10), (500, 1)) - 0.1, dtype)

    def loss(support: Array, x: Array, y: Array) -> Array:
        K = kernel(support, None)
        regularised = K + 1e-6 * jnp.trace(K) / n * jnp.eye(n, dtype=K.dtype)
        coefficients = jax.scipy.linalg.solve(regularised, y[:n], assume_a="pos")
        return 0.5 * jnp.mean((kernel(x, support) @ coefficients - y) ** 2)

    @jax.jit
    def update(support: Array, mean: Array, square: Array, x: Array, y: Array) -> tuple[Array, ...]:
        grad = jax.grad(loss)(support, x, y)
        mean, square = 0.9 * mean + 0.1 * grad, 0.999 * square + 0.001 * grad**2
        return support - 0.04 * mean / (jnp.sqrt(square) + 1e-8), mean, square

    start = images(n, dtype, 3)
    state = [start, jnp.zeros_like(start), jnp.zeros_like(start)]

    def step() -> None:
        state[:] = update(*state, x, y)
        jax.block_until_ready(state)

    return step


def cpu_ms(way: Callable[[], object]) -> float:
    start = time.process_time()
    way()
    return 1000 * (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--dtype", choices=["float64", "float32"], default="float64")
    arguments = parser.parse_args()
    dtype = arguments.dtype
    jax.config.update("jax_enable_x64", dtype == "float64")
    a, b = np.random.default_rng(0).standard_normal((100, 784)), np.random.default_rng(1).standard_normal((784, 6000))
    ways: dict[str, Callable[[], object]] = {"float64 product 100 x 784 x 6000": lambda: a @ b}
    ways[f"FC3 NTK, 100 x 6000, {dtype}"] = evaluation(3, dtype)
    for depth, n in ((1, 10), (1, 100), (3, 10), (3, 100)):
        ways[f"KIP step, FC{depth}, {n} images, batch 5000, {dtype}"] = kip_step(depth, n, dtype)
    for way in ways.values():  # compiles
        way()
        way()
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(arguments.repeats):
        for name, way in ways.items():
            way()  # warm
            found[name] += [cpu_ms(way) for _ in range(IN_A_ROW)]
    for name, milliseconds in found.items():
        print(f"{name:52s}{min(milliseconds):10.1f} ms")


if __name__ == "__main__":
    main()
