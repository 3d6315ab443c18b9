"""Device code: the three inner products of two gradients.

A tile is WIDTH columns wide, so that a row lies in one or two threads. Every row is scaled by powers of two to near 1, its
products are summed in float32, and only the sums of rows are unscaled and added up in float64. That costs less than one
float64 operation an element, so it runs at memory speed on devices whose float64 is slow, and squares neither overflow nor
underflow: gradients of norm 1e-30 and 1e+15 are as exact as gradients of norm 1.

Error: WIDTH products and WIDTH - 1 additions in float32, 8 u = 4.8e-7 relative to sum |a_i b_i|; the rest is in float64.
"""

import triton
import triton.language as tl

WIDTH = tl.constexpr(8)


@triton.jit
def tile_offsets(ROWS: tl.constexpr):
    """Offsets of a tile's elements, shape (ROWS, WIDTH), int32: row after row."""
    return tl.arange(0, ROWS)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]


@triton.jit
def power_of_two(exponent):
    """2^exponent as float64, for exponents of int32 in [-1022, 1023]."""
    return ((exponent.to(tl.int64) + 1023) << 52).to(tl.float64, bitcast=True)


@triton.jit
def row_exponents(x):
    """e with 2^e <= max |x| < 2^(e+1) in each row, clamped to [-126, 126], so that 2^-e is a normal float32."""
    biased = tl.max(tl.abs(x), axis=1).to(tl.int32, bitcast=True) >> 23
    return tl.minimum(tl.maximum(biased, 1), 253) - 127


@triton.jit
def scaled(x, exponents):
    """Each row of x times 2^-exponent, exactly."""
    return x * ((127 - exponents) << 23).to(tl.float32, bitcast=True)[:, None]


@triton.jit
def add_products(rr, ff, rf, r, f):
    """Add the products of one tile to the float64 sums a row."""
    r, f = r.to(tl.float32), f.to(tl.float32)
    r_exponents, f_exponents = row_exponents(r), row_exponents(f)
    r, f = scaled(r, r_exponents), scaled(f, f_exponents)
    r_unit, f_unit = power_of_two(r_exponents), power_of_two(f_exponents)
    rr += tl.sum(r * r, axis=1).to(tl.float64) * r_unit * r_unit
    ff += tl.sum(f * f, axis=1).to(tl.float64) * f_unit * f_unit
    rf += tl.sum(r * f, axis=1).to(tl.float64) * r_unit * f_unit
    return rr, ff, rf


@triton.jit
def sweep_products(retain, forget, n, ROWS: tl.constexpr):
    """This program's part of (g_R.g_R, g_F.g_F, g_R.g_F): every tile whose number is congruent to its own, in order."""
    TILE: tl.constexpr = ROWS * WIDTH
    program, programs = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    offsets = tile_offsets(ROWS)
    rr = tl.zeros((ROWS,), tl.float64)
    ff = tl.zeros((ROWS,), tl.float64)
    rf = tl.zeros((ROWS,), tl.float64)
    whole = n // TILE
    for tile in range(program, whole, programs):
        start = tile * TILE
        r = tl.load(retain + start + offsets)
        f = tl.load(forget + start + offsets)
        rr, ff, rf = add_products(rr, ff, rf, r, f)
    if program == whole % programs:
        start = whole * TILE
        inside = offsets < n - start
        r = tl.load(retain + start + offsets, mask=inside, other=0.0)
        f = tl.load(forget + start + offsets, mask=inside, other=0.0)
        rr, ff, rf = add_products(rr, ff, rf, r, f)
    return tl.sum(rr, 0), tl.sum(ff, 0), tl.sum(rf, 0)
