"""The step as Triton kernels, for CUDA and ROCm: `launch` is the backend, the other modules are device code."""
