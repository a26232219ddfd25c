"""The ceilings with which a side is compared, measured where it runs: matrix products in flop/s, and copies in bytes/s."""

import time
from collections.abc import Callable, Sequence

Product = tuple[int, int, int]
"""(m, k, n): an (m, k) matrix times a (k, n) matrix."""

# The model's own MLP, and large square products.
_CPU_PRODUCTS: list[Product] = [(2048, 1024, 4096), (2048, 4096, 1024), (3072, 3072, 3072)]
_GPU_PRODUCTS: list[Product] = [(8192, 8192, 8192)]


def torch_matmul_rate(device: str, dtype: str, tf32: bool = False, products: Sequence[Product] | None = None) -> float:
    """PyTorch's rate in flop/s, on "cpu" or "cuda"; with `tf32`, float32 products may be computed in TF32."""
    import torch

    def multiply(m: int, k: int, n: int) -> Callable[[], None]:
        a, b = (torch.randn(*shape, device=device, dtype=getattr(torch, dtype)) for shape in ((m, k), (k, n)))

        def product() -> None:
            a @ b
            if device == "cuda":
                torch.cuda.synchronize()

        return product

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        return _best_of(multiply, products or (_GPU_PRODUCTS if device == "cuda" else _CPU_PRODUCTS))
    finally:
        torch.set_float32_matmul_precision(before)


def jax_matmul_rate(dtype: str, precision: str | None = None, products: Sequence[Product] | None = None) -> float:
    """JAX's rate in flop/s, on its default device; float32 at precision "highest" unless another one is given."""
    import jax
    import jax.numpy as jnp

    precision = precision or ("highest" if dtype == "float32" else "default")

    def multiply(m: int, k: int, n: int) -> Callable[[], None]:
        a, b = (jax.random.normal(jax.random.key(0), shape, dtype) for shape in ((m, k), (k, n)))
        product = jax.jit(lambda a, b: jnp.matmul(a, b, precision=precision))
        return lambda: product(a, b).block_until_ready()

    return _best_of(multiply, products or (_CPU_PRODUCTS if jax.default_backend() == "cpu" else _GPU_PRODUCTS))


def torch_copy_rate(device: str, size: int) -> float:
    """PyTorch's copy of `size` bytes of float32 within the device's memory, in bytes read plus bytes written per second."""
    import torch

    source = torch.randn(size // 4, device=device)
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)
        if device == "cuda":
            torch.cuda.synchronize()

    return 2 * source.nbytes / _best_seconds(copy)


def jax_copy_rate(size: int) -> float:
    """The same for JAX, but into new memory each time, because JAX's arrays never change."""
    import jax
    import jax.numpy as jnp

    source = jax.random.normal(jax.random.key(0), (size // 4,))
    copy = jax.jit(jnp.copy)
    return 2 * source.nbytes / _best_seconds(lambda: copy(source).block_until_ready())


def _best_of(multiply: Callable[[int, int, int], Callable[[], None]], products: Sequence[Product]) -> float:
    """The highest rate of all timings of these products."""
    return max(2 * m * k * n / _best_seconds(multiply(m, k, n)) for m, k, n in products)


def _best_seconds(run: Callable[[], object]) -> float:
    """The shortest of five timings, after a run that is not counted."""
    run()
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best
