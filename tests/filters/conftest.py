from cuda_shim.fixtures import fibers

__all__ = ["fibers"]
