"""The Triton code of `triton_attention`: rotation, forward pass, and the two kernels of the backward pass.

A head is held as two half tiles, so that rotating the pairs (i, i + Dh/2) needs no shuffle; halves are padded with zero
columns to a power of two. Every kernel has four bounds a ≤ b ≤ c ≤ d and walks its blocks twice: those of [b, c), where
all scores are seen, without a mask, then those of [a, b) and [c, d) with one.

Shapes: B rows, T tokens, H query heads, K key/value heads, G = H / K, Dh head width.
"""

import triton
import triton.language as tl


@triton.jit
def _place(base, stride, start, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Row numbers `(ROWS, 1)`, column numbers `(1, WIDTH)` and addresses of a tile; int64 across the whole matrix."""
    rows = tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, WIDTH)[None, :]
    return start + rows, columns, base + tl.cast(start, tl.int64) * stride + rows * stride + columns


@triton.jit
def _load(base, stride, start, T, ROWS: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, MASKED: tl.constexpr):
    """Rows from `start` on as `(ROWS, WIDTH)`: zero from column SIZE on and, where MASKED, from row T on."""
    rows, columns, place = _place(base, stride, start, ROWS, WIDTH)
    if MASKED:
        tile = tl.load(place, mask=(rows < T) & (columns < SIZE), other=0.0)
    elif SIZE < WIDTH:
        tile = tl.load(place, mask=columns < SIZE, other=0.0)
    else:
        tile = tl.load(place)
    return tile


@triton.jit
def _store(base, stride, start, T, tile, SIZE: tl.constexpr):
    """Writes the first SIZE columns of `tile` to the rows from `start` on."""
    rows, columns, place = _place(base, stride, start, tile.shape[0], tile.shape[1])
    tl.store(place, tile.to(base.dtype.element_ty), mask=(rows < T) & (columns < SIZE))


@triton.jit
def _load_head(
    base, stride, start, T, ROWS: tl.constexpr, HEAD: tl.constexpr, HALF: tl.constexpr, MASKED: tl.constexpr
):
    """The two halves of a tile, each `(ROWS, HALF)`."""
    x1 = _load(base, stride, start, T, ROWS, HEAD // 2, HALF, MASKED)
    x2 = _load(base + HEAD // 2, stride, start, T, ROWS, HEAD // 2, HALF, MASKED)
    return x1, x2


@triton.jit
def _store_head(base, stride, start, T, x1, x2, HEAD: tl.constexpr):
    """Writes the two halves of a tile."""
    _store(base, stride, start, T, x1, HEAD // 2)
    _store(base + HEAD // 2, stride, start, T, x2, HEAD // 2)


@triton.jit
def _turn(x1, x2, cos, sin, stride, start, T, SIGN: tl.constexpr, HEAD: tl.constexpr):
    """Rotates pairs by SIGN times the angles of their tokens, in the precision of the table or better."""
    c = _load(cos, stride, start, T, x1.shape[0], HEAD // 2, x1.shape[1], True)
    s = _load(sin, stride, start, T, x1.shape[0], HEAD // 2, x1.shape[1], True) * SIGN
    return (x1 * c - x2 * s).to(x1.dtype), (x2 * c + x1 * s).to(x2.dtype)


@triton.jit
def _add_dot(acc, a, b, PRECISION: tl.constexpr):
    """acc + a b; fp64 must be asked for."""
    return tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=acc.dtype)


@triton.jit
def _scores(a1, a2, b1, b2, PRECISION: tl.constexpr):
    """a bᵀ · log2(e) / √Dh up to the scale, from halves."""
    half = tl.dot(a1, tl.trans(b1), input_precision=PRECISION)
    return _add_dot(half, a2, tl.trans(b2), PRECISION)


@triton.jit
def _visible(rows, keys, first, T):
    """True where a query sees a key: not after it, and not before its document."""
    seen = keys <= rows
    if first is not None:
        seen = seen & (keys >= tl.load(first + rows, mask=rows < T, other=0))
    return seen


@triton.jit
def _walk(bounds, MASKED: tl.constexpr):
    """Where to count from and to."""
    a, b, c, d = bounds
    if MASKED:
        return a, b + d - c
    else:
        return b, c


@triton.jit
def _block(count, bounds, MASKED: tl.constexpr):
    """The block at a count: the masked walk leaps over the middle."""
    if MASKED:
        count += tl.where(count < bounds[1], 0, bounds[2] - bounds[1])
    return count


@triton.jit
def _key_ranges(first, start, T, QUERIES: tl.constexpr, KEYS: tl.constexpr):
    """The bounds of keys for a block of queries: documents begin, all are seen, the diagonal, the end."""
    stop = tl.minimum(start + QUERIES, T)
    diagonal = start // KEYS * KEYS
    low = start * 0
    clear = low
    if first is not None:  # clamped, so that a wrong `first` reads nothing outside
        low = tl.minimum(tl.maximum(tl.load(first + start), 0), start) // KEYS * KEYS
        youngest = tl.load(first + stop - 1)
        clear = tl.minimum(tl.maximum((youngest + KEYS - 1) // KEYS * KEYS, low), diagonal)
    return low, clear, diagonal, stop


@triton.jit
def _query_ranges(last, start, T, QUERIES: tl.constexpr, KEYS: tl.constexpr):
    """The bounds of queries for a block of keys: the diagonal, all see them, documents end, the end."""
    diagonal = start // QUERIES * QUERIES
    stop = T
    whole = T // QUERIES * QUERIES
    if last is not None:
        stop = tl.load(last + tl.minimum(start + KEYS, T) - 1) + 1
        whole = (tl.load(last + start) + 1) // QUERIES * QUERIES
    below = tl.minimum((start + KEYS + QUERIES - 2) // QUERIES * QUERIES, stop)
    return diagonal, below, tl.maximum(below, whole), stop


@triton.jit
def rotate_kernel(
    x, out, cos, sin, x_b, x_h, x_t, c_b, c_t, N, T, HEAD: tl.constexpr, HALF: tl.constexpr, ROWS: tl.constexpr
):
    """`x (B, N, T, Dh)` rotated into `out`, which is contiguous."""
    pid = tl.program_id(0).to(tl.int64)
    b, n, start = pid // N, pid % N, tl.program_id(1) * ROWS
    x1, x2 = _load_head(x + b * x_b + n * x_h, x_t, start, T, ROWS, HEAD, HALF, True)
    x1, x2 = _turn(x1, x2, cos + b * c_b, sin + b * c_b, c_t, start, T, 1, HEAD)
    _store_head(out + pid * T * HEAD, HEAD, start, T, x1, x2, HEAD)


@triton.jit
def _attend(
    acc, top, total, q1, q2, k, k_t, v, v_t, rows, first, bounds, T,
    HEAD: tl.constexpr, KEYS: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Takes a range of keys into the running sum, maximum (of scores in units of ln 2) and normaliser."""
    SCALE: tl.constexpr = 1.4426950408889634 * HEAD**-0.5
    start, stop = _walk(bounds, MASKED)
    for count in tl.range(start, stop, KEYS):
        n = _block(count, bounds, MASKED)
        k1, k2 = _load_head(k, k_t, n, T, KEYS, HEAD, q1.shape[1], MASKED)
        values = _load(v, v_t, n, T, KEYS, HEAD, acc.shape[1], MASKED)
        scores = _scores(q1, q2, k1, k2, PRECISION)  # (queries, KEYS)
        if MASKED:
            scores = tl.where(_visible(rows, n + tl.arange(0, KEYS)[None, :], first, T), scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1) * SCALE)
        anchor = higher
        if MASKED:  # a query that has seen nothing yet would take −inf from −inf
            anchor = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(scores * SCALE - anchor[:, None])
        shrink = tl.exp2(top - anchor)
        total = total * shrink + tl.sum(weights, 1)
        acc = _add_dot(acc * shrink[:, None], weights.to(values.dtype), values, PRECISION)
        top = higher
    return acc, top, total


@triton.jit
def forward_kernel(
    q, k, v, out, lse, first, cos, sin, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, c_b, c_t, H, T,
    GROUPS: tl.constexpr, HEAD: tl.constexpr, HALF: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (b·h, i) owns a block of queries; the last blocks, which see most, start first."""
    pid = tl.program_id(0).to(tl.int64)
    b, h = pid // H, pid % H
    start = (tl.num_programs(1) - 1 - tl.program_id(1)) * QUERIES
    rows = start + tl.arange(0, QUERIES)
    k += b * k_b + h // GROUPS * k_h
    v += b * v_b + h // GROUPS * v_h
    q1, q2 = _load_head(q + b * q_b + h * q_h, q_t, start, T, QUERIES, HEAD, HALF, True)
    if cos is not None:
        q1, q2 = _turn(q1, q2, cos + b * c_b, sin + b * c_b, c_t, start, T, 1, HEAD)
    if first is not None:
        first += b * T
    bounds = _key_ranges(first, start, T, QUERIES, KEYS)
    acc = tl.zeros((QUERIES, 2 * HALF), lse.dtype.element_ty)
    top = tl.full((QUERIES,), float("-inf"), lse.dtype.element_ty)
    total = tl.zeros((QUERIES,), lse.dtype.element_ty)
    for masked in tl.static_range(2):
        acc, top, total = _attend(
            acc, top, total, q1, q2, k, k_t, v, v_t, rows[:, None], first, bounds, T, HEAD, KEYS, masked, PRECISION
        )
    total = tl.where(total == 0, 1.0, total)  # nothing seen gives zeros
    tl.store(lse + pid * T + rows, top + tl.log2(total), mask=rows < T)
    _store(out + (b * T * H + h) * HEAD, H * HEAD, start, T, acc / total[:, None], HEAD)


@triton.jit
def _descend_queries(
    dq1, dq2, q1, q2, dout, lse, delta, k, k_t, v, v_t, rows, first, bounds, T,
    HEAD: tl.constexpr, KEYS: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds what a range of keys gives to dq·√Dh."""
    SCALE: tl.constexpr = 1.4426950408889634 * HEAD**-0.5
    start, stop = _walk(bounds, MASKED)
    for count in tl.range(start, stop, KEYS):
        n = _block(count, bounds, MASKED)
        k1, k2 = _load_head(k, k_t, n, T, KEYS, HEAD, q1.shape[1], MASKED)
        values = _load(v, v_t, n, T, KEYS, HEAD, dout.shape[1], MASKED)
        weights = tl.exp2(_scores(q1, q2, k1, k2, PRECISION) * SCALE - lse)  # (queries, KEYS)
        slope = weights * (tl.dot(dout, tl.trans(values), input_precision=PRECISION) - delta)
        if MASKED:
            slope = tl.where(_visible(rows, n + tl.arange(0, KEYS)[None, :], first, T), slope, 0.0)
        slope = slope.to(k1.dtype)
        dq1 = _add_dot(dq1, slope, k1, PRECISION)
        dq2 = _add_dot(dq2, slope, k2, PRECISION)
    return dq1, dq2


@triton.jit
def dq_kernel(
    grad, q, k, v, out, lse, first, cos, sin, dq, turned, delta,
    g_b, g_h, g_t, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, c_b, c_t, H, T,
    GROUPS: tl.constexpr, HEAD: tl.constexpr, HALF: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """As the forward kernel, for dq; leaves delta = Σ grad·out and the rotated queries to the other kernel."""
    pid = tl.program_id(0).to(tl.int64)
    b, h = pid // H, pid % H
    start = (tl.num_programs(1) - 1 - tl.program_id(1)) * QUERIES
    rows = start + tl.arange(0, QUERIES)
    k += b * k_b + h // GROUPS * k_h
    v += b * v_b + h // GROUPS * v_h
    dout = _load(grad + b * g_b + h * g_h, g_t, start, T, QUERIES, HEAD, 2 * HALF, True)
    done = _load(out + (b * T * H + h) * HEAD, H * HEAD, start, T, QUERIES, HEAD, 2 * HALF, True)
    d = tl.sum(dout.to(delta.dtype.element_ty) * done.to(delta.dtype.element_ty), 1)
    tl.store(delta + pid * T + rows, d, mask=rows < T)
    q1, q2 = _load_head(q + b * q_b + h * q_h, q_t, start, T, QUERIES, HEAD, HALF, True)
    if cos is not None:
        q1, q2 = _turn(q1, q2, cos + b * c_b, sin + b * c_b, c_t, start, T, 1, HEAD)
        _store_head(turned + pid * T * HEAD, HEAD, start, T, q1, q2, HEAD)
    if first is not None:
        first += b * T
    bounds = _key_ranges(first, start, T, QUERIES, KEYS)
    e = tl.load(lse + pid * T + rows, mask=rows < T, other=0.0)
    dq1 = tl.zeros((QUERIES, HALF), lse.dtype.element_ty)
    dq2 = tl.zeros((QUERIES, HALF), lse.dtype.element_ty)
    for masked in tl.static_range(2):
        dq1, dq2 = _descend_queries(
            dq1, dq2, q1, q2, dout, e[:, None], d[:, None], k, k_t, v, v_t, rows[:, None], first, bounds, T,
            HEAD, KEYS, masked, PRECISION,
        )  # fmt: skip
    dq1, dq2 = dq1 * HEAD**-0.5, dq2 * HEAD**-0.5
    if cos is not None:
        dq1, dq2 = _turn(dq1, dq2, cos + b * c_b, sin + b * c_b, c_t, start, T, -1, HEAD)
    _store_head(dq + (b * T * H + h) * HEAD, H * HEAD, start, T, dq1, dq2, HEAD)


@triton.jit
def _descend_keys(
    dk1, dk2, dv, k1, k2, values, q, q_t, grad, g_t, lse, delta, first, keys, bounds, T,
    HEAD: tl.constexpr, QUERIES: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds what a range of queries gives to dk·√Dh and dv; scores lie transposed."""
    SCALE: tl.constexpr = 1.4426950408889634 * HEAD**-0.5
    start, stop = _walk(bounds, MASKED)
    for count in tl.range(start, stop, QUERIES):
        m = _block(count, bounds, MASKED)
        q1, q2 = _load_head(q, q_t, m, T, QUERIES, HEAD, k1.shape[1], MASKED)
        dout = _load(grad, g_t, m, T, QUERIES, HEAD, values.shape[1], MASKED)
        rows = m + tl.arange(0, QUERIES)[None, :]
        inside = rows < T if MASKED else None
        weights = tl.exp2(_scores(k1, k2, q1, q2, PRECISION) * SCALE - tl.load(lse + rows, mask=inside))
        if MASKED:
            seen = inside & _visible(rows, keys, first, T)
            weights = tl.where(seen, weights, 0.0)  # (keys, QUERIES)
        dv = _add_dot(dv, weights.to(dout.dtype), dout, PRECISION)
        slope = tl.dot(values, tl.trans(dout), input_precision=PRECISION)
        slope = weights * (slope - tl.load(delta + rows, mask=inside))
        if MASKED:
            slope = tl.where(seen, slope, 0.0)
        slope = slope.to(q1.dtype)
        dk1 = _add_dot(dk1, slope, q1, PRECISION)
        dk2 = _add_dot(dk2, slope, q2, PRECISION)
    return dk1, dk2, dv


@triton.jit
def dkv_kernel(
    grad, q, k, v, lse, delta, first, last, cos, sin, dk, dv,
    g_b, g_h, g_t, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, c_b, c_t, K, T,
    GROUPS: tl.constexpr, HEAD: tl.constexpr, HALF: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (b·key/value head, i) owns a block of keys, for all query heads of its group."""
    pid = tl.program_id(0).to(tl.int64)
    b, n = pid // K, pid % K
    start = tl.program_id(1) * KEYS
    keys = start + tl.arange(0, KEYS)[:, None]
    k1, k2 = _load_head(k + b * k_b + n * k_h, k_t, start, T, KEYS, HEAD, HALF, True)
    values = _load(v + b * v_b + n * v_h, v_t, start, T, KEYS, HEAD, 2 * HALF, True)
    if first is not None:
        first += b * T
        last += b * T
    bounds = _query_ranges(last, start, T, QUERIES, KEYS)
    dk1 = tl.zeros((KEYS, HALF), lse.dtype.element_ty)
    dk2 = tl.zeros((KEYS, HALF), lse.dtype.element_ty)
    vs = tl.zeros((KEYS, 2 * HALF), lse.dtype.element_ty)
    for g in tl.range(0, GROUPS):
        h = n * GROUPS + g
        line = (b * K * GROUPS + h) * T
        for masked in tl.static_range(2):
            dk1, dk2, vs = _descend_keys(
                dk1, dk2, vs, k1, k2, values, q + b * q_b + h * q_h, q_t, grad + b * g_b + h * g_h, g_t,
                lse + line, delta + line, first, keys, bounds, T, HEAD, QUERIES, masked, PRECISION,
            )  # fmt: skip
    dk1, dk2 = dk1 * HEAD**-0.5, dk2 * HEAD**-0.5
    if cos is not None:
        dk1, dk2 = _turn(dk1, dk2, cos + b * c_b, sin + b * c_b, c_t, start, T, -1, HEAD)
    _store_head(dk + (b * T * K + n) * HEAD, K * HEAD, start, T, dk1, dk2, HEAD)
    _store(dv + (b * T * K + n) * HEAD, K * HEAD, start, T, vs, HEAD)
