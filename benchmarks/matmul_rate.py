"""The ceiling that a side is held against: the highest rate of matrix products, in flop/s, measured where it runs."""

import time
from collections.abc import Callable

# (m, k, n): the model's own MLP, and large square products.
_CPU_PRODUCTS = [(2048, 1024, 4096), (2048, 4096, 1024), (3072, 3072, 3072)]
_GPU_PRODUCTS = [(8192, 8192, 8192)]


def torch_matmul_rate(device: str, dtype: str) -> float:
    """PyTorch's, on "cpu" or "cuda"."""
    import torch

    def multiply(m: int, k: int, n: int) -> Callable[[], None]:
        a, b = (torch.randn(*shape, device=device, dtype=getattr(torch, dtype)) for shape in ((m, k), (k, n)))

        def product() -> None:
            a @ b
            if device == "cuda":
                torch.cuda.synchronize()

        return product

    return _best_rate(multiply, _GPU_PRODUCTS if device == "cuda" else _CPU_PRODUCTS)


def jax_matmul_rate(dtype: str) -> float:
    """JAX's, on its default device; float32 at precision "highest"."""
    import jax
    import jax.numpy as jnp

    precision = "highest" if dtype == "float32" else "default"

    def multiply(m: int, k: int, n: int) -> Callable[[], None]:
        a, b = (jax.random.normal(jax.random.key(0), shape, dtype) for shape in ((m, k), (k, n)))
        product = jax.jit(lambda a, b: jnp.matmul(a, b, precision=precision))
        return lambda: product(a, b).block_until_ready()

    return _best_rate(multiply, _CPU_PRODUCTS if jax.default_backend() == "cpu" else _GPU_PRODUCTS)


def _best_rate(multiply: Callable[[int, int, int], Callable[[], None]], sizes: list[tuple[int, int, int]]) -> float:
    """The highest of five timings of a product of each size."""
    best = 0.0
    for m, k, n in sizes:
        product = multiply(m, k, n)
        product()
        for _ in range(5):
            start = time.perf_counter()
            product()
            best = max(best, 2 * m * k * n / (time.perf_counter() - start))
    return best
