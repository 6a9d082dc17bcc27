from cuda_shim.fixtures import cupy, fibers

__all__ = ["cupy", "fibers"]
