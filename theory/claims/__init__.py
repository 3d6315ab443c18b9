"""One module a claim. T1 to T6 are the paper's, A1 to A7 are this project's."""

from importlib import import_module

from theory.claim import Claim

MODULES = (
    "t1_static_scalarization",
    "t2_dynamic_scalarization",
    "t3_descent_cone",
    "t4_first_order",
    "t5_second_order",
    "t6_automatic_rate",
    "a1_fairest_direction",
    "a2_scale_invariance",
    "a3_bounded_steps",
    "a4_stationarity",
    "a5_convergence",
    "a6_no_convergence",
    "a7_rounding",
)

CLAIMS = {claim.name: claim for claim in (Claim.of(import_module(f"theory.claims.{name}")) for name in MODULES)}
