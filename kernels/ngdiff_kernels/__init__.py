"""The step of two-task unlearning on flat buffers, one module a backend.

A backend offers five functions over contiguous one-dimensional tensors: `gram`, `combine_`, `base_step_`, `step_` and `probe_`.
`reference` is the plain torch version: it runs on every device, and every faster backend is compared with it.
"""

from ngdiff_kernels.backend import Backend, backend_for
from ngdiff_kernels.bases import BASES, largest_direction, state_shapes

__all__ = ["BASES", "Backend", "backend_for", "largest_direction", "state_shapes"]
