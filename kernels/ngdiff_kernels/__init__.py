"""The step of two-task unlearning on flat buffers, one module a backend.

A backend offers five functions over contiguous one-dimensional tensors: `gram`, `combine_`, `base_step_`, `step_` and `probe_`.
`reference` is the plain torch version: it runs on every device, and every faster backend is compared with it. `gpu.launch`
has the same functions as Triton kernels, and `fused_step_`, the whole step in one launch.
"""

from ngdiff_kernels.backend import Backend, FusedBackend, backend_for
from ngdiff_kernels.bases import BASES, LOW_PRECISION, compute_dtype, largest_direction, state_shapes

__all__ = [
    "BASES",
    "LOW_PRECISION",
    "Backend",
    "FusedBackend",
    "backend_for",
    "compute_dtype",
    "largest_direction",
    "state_shapes",
]
