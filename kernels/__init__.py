"""CUDA sources, a file per kernel family (``gmm_em.cu``, ``pca.cu``, ``calinski_harabasz.cu``), and ``common.cuh``.

Adding a kernel
---------------
1. Write it as ``extern "C" __global__ void __launch_bounds__(...) name(`` with one parameter a line and its shape
   beside it. ``#ifndef`` defaults let the file compile alone; sizes known when it is compiled are macros, so that
   loops unroll.
2. Give it a twin in the package, in NumPy, and call it through :func:`gmmcnn.kernel_loader.kernel`.
3. Give it a case in ``tests/kernels/test_parity.py`` (a test fails without one) and its variants in
   ``tests/kernels/test_compile.py``. What CUDA the emulated device lacks goes into ``tests/cuda_shim/cuda_shim.h``.
4. Sums have a fixed order (no floating-point atomics), constants shared with the package are compared by a test, and
   host and kernel agree on layouts through the argument checks of the emulated device.

``make test`` runs the kernels' unmodified text on fibers of the CPU, races and bounds checked; ``make kernels``
compiles them for every supported architecture; ``pytest -m gpu`` runs the same parity tests on a real device.
"""
