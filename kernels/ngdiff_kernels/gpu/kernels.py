"""The kernels: what `launch` starts. Each is a few lines over the device code beside it.

Buffers are contiguous and of one length n. Coefficients, rates and hyperparameters are float64 in device memory, so that a
step needs no wait and a new rate no new compilation.
"""

import triton
import triton.language as tl

from ngdiff_kernels.gpu.barrier import arrive, meetings, release, wait
from ngdiff_kernels.gpu.coefficients import may_step
from ngdiff_kernels.gpu.products import WIDTH, sweep_products, tile_offsets
from ngdiff_kernels.gpu.updates import combine, direction, sweep_update, to_nearest


@triton.jit
def store_part(parts, rr, ff, rf):
    """Leave this program's part of the products for the last one."""
    part = parts + tl.program_id(0) * 3
    tl.store(part, rr)
    tl.store(part + 1, ff)
    tl.store(part + 2, rf)


@triton.jit
def sum_parts(parts, BATCH: tl.constexpr):
    """The products, from all programs' parts in a fixed order. Read past the first-level cache, which may be out of date."""
    rr = tl.zeros((BATCH,), tl.float64)
    ff = tl.zeros((BATCH,), tl.float64)
    rf = tl.zeros((BATCH,), tl.float64)
    for first in range(0, tl.num_programs(0), BATCH):
        program = first + tl.arange(0, BATCH)
        part, present = parts + program * 3, program < tl.num_programs(0)
        rr += tl.load(part, mask=present, other=0.0, cache_modifier=".cg")
        ff += tl.load(part + 1, mask=present, other=0.0, cache_modifier=".cg")
        rf += tl.load(part + 2, mask=present, other=0.0, cache_modifier=".cg")
    return tl.sum(rr, 0), tl.sum(ff, 0), tl.sum(rf, 0)


@triton.jit(do_not_specialize=["n"])
def gram_kernel(out, retain, forget, n: tl.int64, parts, barrier, ROWS: tl.constexpr):
    """out <- (g_R.g_R, g_F.g_F, g_R.g_F)."""
    rr, ff, rf = sweep_products(retain, forget, n, ROWS)
    store_part(parts, rr, ff, rf)
    if arrive(barrier):
        rr, ff, rf = sum_parts(parts, ROWS)
        tl.store(out, rr)
        tl.store(out + 1, ff)
        tl.store(out + 2, rf)
        release(barrier)


@triton.jit(do_not_specialize=["n"])
def combine_kernel(retain, forget, coefficients, n: tl.int64, ROWS: tl.constexpr):
    """g_R <- c_R g_R - c_F g_F."""
    c_r, c_f = tl.load(coefficients), tl.load(coefficients + 1)
    start = tl.program_id(0).to(tl.int64) * (ROWS * WIDTH)
    offsets = tile_offsets(ROWS)
    if start + ROWS * WIDTH <= n:
        r, f = tl.load(retain + start + offsets), tl.load(forget + start + offsets)
        tl.store(retain + start + offsets, to_nearest(combine(r, f, c_r, c_f), retain.dtype.element_ty))
    else:
        inside = offsets < n - start
        r, f = tl.load(retain + start + offsets, mask=inside), tl.load(forget + start + offsets, mask=inside)
        tl.store(retain + start + offsets, to_nearest(combine(r, f, c_r, c_f), retain.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["n", "seed"])
def step_kernel(
    theta,
    retain,
    forget,
    first,
    second,
    master,
    step,
    coefficients,
    finite,
    lr,
    hyper,
    n: tl.int64,
    seed: tl.int64,
    barrier,
    BASE: tl.constexpr,
    MOMENTUM_ON: tl.constexpr,
    NESTEROV: tl.constexpr,
    COMBINED: tl.constexpr,
    ROUNDING: tl.constexpr,
    ROWS: tl.constexpr,
):
    """theta <- theta - lr base(c_R g_R - c_F g_F), or base(g_R) if COMBINED; nothing unless `finite`."""
    if tl.load(finite):
        c_r, c_f = 1.0, 0.0
        if not COMBINED:
            c_r, c_f = tl.load(coefficients), tl.load(coefficients + 1)
        count = tl.load(step).to(tl.float64) + 1 if BASE == "adamw" else 0.0
        sweep_update(
            theta, retain, forget, first, second, master, n, c_r, c_f, tl.load(lr).to(tl.float32), count, hyper, seed,
            BASE, MOMENTUM_ON, NESTEROV, COMBINED, ROUNDING, False, ROWS,
        )  # fmt: skip
        if BASE == "adamw":
            if arrive(barrier):  # by now every program has read the count
                tl.store(step, count.to(tl.float32))
                release(barrier)


@triton.jit
def probe_tile(
    out,
    theta,
    d,
    first,
    second,
    start,
    n,
    h,
    step,
    hyper,
    BASE: tl.constexpr,
    MOMENTUM_ON: tl.constexpr,
    NESTEROV: tl.constexpr,
    WHOLE: tl.constexpr,
    ROWS: tl.constexpr,
):
    """out <- theta + h base(d) in one tile."""
    TWO: tl.constexpr = BASE == "adamw"
    offsets = tile_offsets(ROWS)
    inside = None if WHOLE else offsets < n - start
    t = tl.load(theta + start + offsets, mask=inside).to(tl.float32)
    g = tl.load(d + start + offsets, mask=inside).to(tl.float32)
    s1 = tl.load(first + start + offsets, mask=inside) if TWO or MOMENTUM_ON else g
    s2 = tl.load(second + start + offsets, mask=inside) if TWO else g
    update, s1, s2 = direction(t, g, s1, s2, step, hyper, BASE, MOMENTUM_ON, NESTEROV)
    tl.store(out + start + offsets, to_nearest(t + h * update, out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["n"])
def probe_kernel(
    out,
    theta,
    d,
    first,
    second,
    step,
    h,
    hyper,
    n: tl.int64,
    BASE: tl.constexpr,
    MOMENTUM_ON: tl.constexpr,
    NESTEROV: tl.constexpr,
    ROWS: tl.constexpr,
):
    """out <- theta + h base(d)."""
    start = tl.program_id(0).to(tl.int64) * (ROWS * WIDTH)
    count = tl.load(step).to(tl.float64) + 1 if BASE == "adamw" else 0.0
    rate = tl.load(h).to(tl.float32)
    if start + ROWS * WIDTH <= n:
        probe_tile(out, theta, d, first, second, start, n, rate, count, hyper, BASE, MOMENTUM_ON, NESTEROV, True, ROWS)
    else:
        probe_tile(out, theta, d, first, second, start, n, rate, count, hyper, BASE, MOMENTUM_ON, NESTEROV, False, ROWS)


@triton.jit(do_not_specialize=["n", "seed"])
def fused_step_kernel(
    report,
    theta,
    retain,
    forget,
    first,
    second,
    master,
    step,
    losses,
    rule,
    lr,
    hyper,
    n: tl.int64,
    seed: tl.int64,
    parts,
    barrier,
    RULE: tl.constexpr,
    BASE: tl.constexpr,
    MOMENTUM_ON: tl.constexpr,
    NESTEROV: tl.constexpr,
    ROUNDING: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Both sweeps with the rule between them: report <- (g_R.g_R, g_F.g_F, g_R.g_F, c_R, c_F, finite), and the step.

    `rule` holds the parameter of the rule and the norm that d must stay below. Every program must be on the device at once.
    The second sweep goes back over the tiles that the first has just read: the cache still holds the last of them.
    """
    before = meetings(barrier)
    count = tl.load(step).to(tl.float64) + 1 if BASE == "adamw" else 0.0
    rr, ff, rf = sweep_products(retain, forget, n, ROWS)
    store_part(parts, rr, ff, rf)
    if arrive(barrier):
        rr, ff, rf = sum_parts(parts, ROWS)
        retain_loss, forget_loss = tl.load(losses), tl.load(losses + 1)
        c_r, c_f = RULE(rr, ff, rf, retain_loss, forget_loss, tl.load(rule))
        finite = may_step(rr, ff, rf, retain_loss, forget_loss, c_r, c_f, tl.load(rule + 1))
        tl.store(report, rr)
        tl.store(report + 1, ff)
        tl.store(report + 2, rf)
        tl.store(report + 3, c_r)
        tl.store(report + 4, c_f)
        tl.store(report + 5, finite.to(tl.float64))
        if BASE == "adamw":
            tl.store(step, (count - 1 + finite.to(tl.float64)).to(tl.float32))
        release(barrier)
    wait(barrier, before)
    if tl.load(report + 5, cache_modifier=".cg") != 0:
        c_r, c_f = tl.load(report + 3, cache_modifier=".cg"), tl.load(report + 4, cache_modifier=".cg")
        sweep_update(
            theta, retain, forget, first, second, master, n, c_r, c_f, tl.load(lr).to(tl.float32), count, hyper, seed,
            BASE, MOMENTUM_ON, NESTEROV, False, ROUNDING, True, ROWS,
        )  # fmt: skip
