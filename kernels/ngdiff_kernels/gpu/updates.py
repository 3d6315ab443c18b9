"""Device code: d = c_R g_R - c_F g_F, the base optimizers, and rounding to 16 bits."""

import triton
import triton.language as tl

from ngdiff_kernels.gpu.products import WIDTH, power_of_two, tile_offsets

# Layout of the hyperparameters in device memory, float64, as `launch.hyperparameters` writes them.
MOMENTUM = tl.constexpr(0)
WEIGHT_DECAY = tl.constexpr(1)
BETA1 = tl.constexpr(2)
BETA2 = tl.constexpr(3)
LOG_BETA1 = tl.constexpr(4)
LOG_BETA2 = tl.constexpr(5)
EPS = tl.constexpr(6)


@triton.jit
def split(c):
    """c as (m, s) in float32 with c = m s and s a power of two, although c itself may exceed float32: 1/||g|| <= 2^149."""
    exponent = ((c.to(tl.int64, bitcast=True) >> 52) & 0x7FF).to(tl.int32) - 1023
    exponent = tl.minimum(tl.maximum(exponent, -126), 127)
    return (c * power_of_two(-exponent)).to(tl.float32), power_of_two(exponent).to(tl.float32)


@triton.jit
def combine(r, f, c_r, c_f):
    """d in float32. A product g s is exact, and no larger than d's guard allows; its own rounding is that of m."""
    m_r, s_r = split(c_r)
    m_f, s_f = split(c_f)
    return (r.to(tl.float32) * s_r) * m_r - (f.to(tl.float32) * s_f) * m_f


@triton.jit
def sgd(theta, d, buffer, hyper, MOMENTUM_ON: tl.constexpr, NESTEROV: tl.constexpr):
    """(direction, momentum buffer): torch.optim.SGD without dampening."""
    d += tl.load(hyper + WEIGHT_DECAY).to(tl.float32) * theta
    if not MOMENTUM_ON:
        return d, buffer
    momentum = tl.load(hyper + MOMENTUM).to(tl.float32)
    buffer = momentum * buffer + d
    if NESTEROV:
        return d + momentum * buffer, buffer
    return buffer, buffer


@triton.jit
def adamw(theta, d, m, v, step, hyper):
    """(direction, first moment, second moment): torch.optim.AdamW in its `step`-th step, counted from 1."""
    beta1, beta2 = tl.load(hyper + BETA1), tl.load(hyper + BETA2)
    # 1 - beta^step in float64: in float32 the first steps of beta = 0.999 would lose four digits.
    correction1 = (1.0 - tl.exp(step * tl.load(hyper + LOG_BETA1))).to(tl.float32)
    correction2 = (1.0 - tl.exp(step * tl.load(hyper + LOG_BETA2))).to(tl.float32)
    m += (1.0 - beta1).to(tl.float32) * (d - m)
    v = beta2.to(tl.float32) * v + (1.0 - beta2).to(tl.float32) * d * d
    denominator = tl.sqrt(v / correction2) + tl.load(hyper + EPS).to(tl.float32)
    return (m / correction1) / denominator + tl.load(hyper + WEIGHT_DECAY).to(tl.float32) * theta, m, v


@triton.jit
def direction(theta, d, first, second, step, hyper, BASE: tl.constexpr, MOMENTUM_ON: tl.constexpr, NESTEROV: tl.constexpr):
    """base(d) and the two state buffers after it; a base that keeps fewer returns the others as they were."""
    if BASE == "adamw":
        return adamw(theta, d, first, second, step, hyper)
    d, first = sgd(theta, d, first, hyper, MOMENTUM_ON, NESTEROV)
    return d, first, second


@triton.jit
def random_halves(seed, rows):
    """16 random bits for each element of some rows, shape (len(rows), WIDTH), int32.

    A function of the seed and the number of the row, int64, alone. Philox gives four words a call, so one call serves
    WIDTH = 8 elements: column j has half j % 2 of word j // 2.
    """
    low, high = rows.to(tl.uint32), (rows >> 32).to(tl.uint32)
    a, b, c, d = tl.philox(seed, low, high, low * 0, low * 0)
    column = tl.arange(0, WIDTH)[None, :]
    word = tl.where(column < 4, tl.where(column < 2, a[:, None], b[:, None]), tl.where(column < 6, c[:, None], d[:, None]))
    return ((word >> ((column % 2) * 16).to(tl.uint32)) & 0xFFFF).to(tl.int32)


@triton.jit
def upper_half(bits):
    """The bfloat16 that is the upper half of a float32 given by its bits. Triton's interpreter casts no other way exactly."""
    return (bits >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)


@triton.jit
def round_to_bfloat16(x, random):
    """x, float32, to one of its two neighbours in bfloat16, the nearer the likelier: unbiased, and exact values stay."""
    bits = x.to(tl.int32, bitcast=True)
    return upper_half(tl.where(x == x, bits + random, bits))  # the bits of a NaN would run over into those of -0


@triton.jit
def round_to_float16(x, random):
    """As `round_to_bfloat16`. float16 has a fixed spacing of 2^-24 below 2^-14, so the spacing is found first."""
    bits = x.to(tl.int32, bitcast=True)
    spacing = tl.minimum(tl.maximum(((bits >> 23) & 0xFF) - 127, -14), 15) - 10
    steps = tl.abs(x) * ((127 - spacing) << 23).to(tl.float32, bitcast=True)  # exact, and below 2^11 for |x| < 2^16
    whole = tl.floor(steps)
    whole += tl.where((steps - whole) * 65536.0 > random.to(tl.float32), 1.0, 0.0)
    value = whole * ((127 + spacing) << 23).to(tl.float32, bitcast=True)
    return (value.to(tl.int32, bitcast=True) | (bits & -2147483648)).to(tl.float32, bitcast=True).to(tl.float16)


@triton.jit
def to_nearest(x, dtype: tl.constexpr):
    """x, float32, rounded to nearest even in `dtype`."""
    if dtype == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        return upper_half(tl.where(x == x, bits + 0x7FFF + ((bits >> 16) & 1), bits))
    else:
        return x.to(dtype)


@triton.jit
def rounded(x, seed, start, ROWS: tl.constexpr, dtype: tl.constexpr):
    """A tile x, float32, whose first element has number `start`, rounded to `dtype` at random."""
    random = random_halves(seed, tl.arange(0, ROWS).to(tl.int64) + start // WIDTH)
    if dtype == tl.bfloat16:
        return round_to_bfloat16(x, random)
    else:
        return round_to_float16(x, random)


@triton.jit
def update_tile(
    theta,
    retain,
    forget,
    first,
    second,
    master,
    start,
    n,
    c_r,
    c_f,
    lr,
    step,
    hyper,
    seed,
    BASE: tl.constexpr,
    MOMENTUM_ON: tl.constexpr,
    NESTEROV: tl.constexpr,
    COMBINED: tl.constexpr,
    ROUNDING: tl.constexpr,
    WHOLE: tl.constexpr,
    ROWS: tl.constexpr,
):
    """theta <- theta - lr base(d) in one tile."""
    offsets = tile_offsets(ROWS)
    inside = None if WHOLE else offsets < n - start
    TWO: tl.constexpr = BASE == "adamw"
    ONE: tl.constexpr = TWO or MOMENTUM_ON
    d = tl.load(retain + start + offsets, mask=inside).to(tl.float32)
    if not COMBINED:
        d = combine(d, tl.load(forget + start + offsets, mask=inside), c_r, c_f)
    weights = master if ROUNDING == "master" else theta
    t = tl.load(weights + start + offsets, mask=inside).to(tl.float32)
    s1 = tl.load(first + start + offsets, mask=inside) if ONE else d
    s2 = tl.load(second + start + offsets, mask=inside) if TWO else d
    update, s1, s2 = direction(t, d, s1, s2, step, hyper, BASE, MOMENTUM_ON, NESTEROV)
    t -= lr * update
    if ROUNDING == "master":
        tl.store(master + start + offsets, t, mask=inside)
    if ROUNDING == "stochastic":
        tl.store(theta + start + offsets, rounded(t, seed, start, ROWS, theta.dtype.element_ty), mask=inside)
    else:
        tl.store(theta + start + offsets, to_nearest(t, theta.dtype.element_ty), mask=inside)
    if ONE:
        tl.store(first + start + offsets, s1, mask=inside)
    if TWO:
        tl.store(second + start + offsets, s2, mask=inside)


@triton.jit
def sweep_update(
    theta,
    retain,
    forget,
    first,
    second,
    master,
    n,
    c_r,
    c_f,
    lr,
    step,
    hyper,
    seed,
    BASE: tl.constexpr,
    MOMENTUM_ON: tl.constexpr,
    NESTEROV: tl.constexpr,
    COMBINED: tl.constexpr,
    ROUNDING: tl.constexpr,
    BACKWARDS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """The update of this program's tiles, the same ones as in `sweep_products`; BACKWARDS from the last one to the first."""
    TILE: tl.constexpr = ROWS * WIDTH
    program, programs = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    whole = n // TILE
    if program == whole % programs:
        update_tile(
            theta, retain, forget, first, second, master, whole * TILE, n, c_r, c_f, lr, step, hyper, seed,
            BASE, MOMENTUM_ON, NESTEROV, COMBINED, ROUNDING, False, ROWS,
        )  # fmt: skip
    mine = (whole - program + programs - 1) // programs
    for i in range(mine):
        tile = program + (mine - 1 - i if BACKWARDS else i) * programs
        update_tile(
            theta, retain, forget, first, second, master, tile * TILE, n, c_r, c_f, lr, step, hyper, seed,
            BASE, MOMENTUM_ON, NESTEROV, COMBINED, ROUNDING, True, ROWS,
        )  # fmt: skip
