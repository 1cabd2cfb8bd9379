"""The row work of the loss on a GPU: one program per row, two or three sweeps over its logits, the last writes.

1. the log-sum-exps, online; 2. the value and the sums a slope needs, for those that need them first; 3. the slope,
written over the student's logits. A row of 49,152 bf16 logits is 96 KiB of the student's and as much of the teacher's:
what later sweeps read again comes from L2 where the rows at work fit there.

Shapes: C rows of a chunk, V vocabulary, k tokens of a sparse teacher, TILE tokens at a time.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tutelage.kernels import rows as plain
from tutelage.kernels.ahead_of_time import Variant
from tutelage.kernels.divergences import KINDS
from tutelage.kernels.launch import on_its_device
from tutelage.kernels.rows import ChunkTeacher, TopK, Work


class Tile(NamedTuple):
    """Tokens of a sweep's step, the warps that share them, and how many steps are loaded at once."""

    tokens: int
    warps: int
    stages: int


TILES = {"dense": Tile(4096, 16, 2), "dense, sums first": Tile(4096, 16, 1), "sparse": Tile(4096, 8, 2)}
"""The static table; 49,152 = 12 · 4096. With two stages a kernel that sums first spills, or fewer of it run at once."""
FLOOR = tl.constexpr(plain.FLOOR)
NO_SUM_FIRST = ("forward_kl", "taid")
"""Their slope q − p (or q − u) needs no sum over the row."""
MOST_NAMED = 1024
"""Tokens that a sparse teacher may name: the kernel holds them in registers."""


def lacks(named: int) -> str | None:
    """What these kernels want and a sparse teacher of so many tokens is not, or None."""
    return f"at most {MOST_NAMED} tokens of a sparse teacher, got {named}" if named > MOST_NAMED else None


@on_its_device
def rows(s: Tensor, teacher: ChunkTeacher, targets: Tensor, knobs: Tensor, work: Work) -> Tensor:
    """See `tutelage.kernels.rows.eager`: sums `(3,)`, and ∂total/∂s over `s (C, ≥V)`."""
    out = torch.empty(3, len(s), dtype=knobs.dtype, device=s.device)
    if not len(s):
        return out.sum(1)
    if s.stride(1) != 1:
        raise ValueError(f"logits must lie row by row, got strides {s.stride()}")
    targets = targets.contiguous()
    common: dict[str, Any] = {"TEMPERED": work.tempered, "WITH_GRAD": work.with_grad, "KIND": work.kind}
    common["ACC"] = tl.float64 if knobs.dtype == torch.float64 else tl.float32
    if isinstance(teacher, TopK):
        tile, k = TILES["sparse"], teacher.ids.shape[1]
        if lack := lacks(k):
            raise ValueError(f"the kernel needs {lack}")
        ids, log_probs = teacher.ids.contiguous(), teacher.log_probs.contiguous()
        _sparse_rows[(len(s),)](
            s, ids, log_probs, targets, knobs, out, s.stride(0), len(s), work.vocab_size, k,
            TILE=_tile(tile, work.vocab_size), K=triton.next_power_of_2(k), STAGES=tile.stages, num_warps=tile.warps,
            **common,
        )  # fmt: skip
        return out.sum(1)
    sums_first = work.by_temperature or work.kind not in NO_SUM_FIRST
    tile = _dense_tile(sums_first)
    teacher = teacher if teacher is None or teacher.stride(1) == 1 else teacher.contiguous()
    _dense_rows[(len(s),)](
        s, teacher, targets, knobs, out, s.stride(0), 0 if teacher is None else teacher.stride(0), len(s),
        work.vocab_size, TILE=_tile(tile, work.vocab_size), HAS_TEACHER=teacher is not None, MASKED=work.masked,
        BY_TEMPERATURE=work.by_temperature, SUMS_FIRST=sums_first, STAGES=tile.stages, num_warps=tile.warps, **common,
    )  # fmt: skip
    return out.sum(1)


def variants() -> list[Variant]:
    """Every kind of both kernels in bf16, at a temperature that may differ from 1 and, for one, at 1; V = 49,152."""
    return [
        *(_variant("dense", kind, tempered=True, by_temperature=False) for kind in KINDS),
        _variant("dense", "forward_kl", tempered=False, by_temperature=False),
        _variant("dense", "forward_kl", tempered=True, by_temperature=True),
        *(_variant("sparse", kind, tempered=True, by_temperature=False) for kind in KINDS),
    ]


def _variant(name: str, kind: str, tempered: bool, by_temperature: bool, vocab_size: int = 49_152) -> Variant:
    """Costs count an exponential as one operation; what sweeps read again comes from L2."""
    sums_first = by_temperature or kind not in NO_SUM_FIRST
    kernel, tile = {"dense": (_dense_rows, _dense_tile(sums_first)), "sparse": (_sparse_rows, TILES["sparse"])}[name]
    known = {"KIND": kind, "TEMPERED": tempered, "WITH_GRAD": True, "TILE": tile.tokens, "ACC": tl.float32}
    known["STAGES"] = tile.stages
    known |= (
        {"HAS_TEACHER": True, "MASKED": False, "BY_TEMPERATURE": by_temperature, "SUMS_FIRST": sums_first}
        if name == "dense"
        else {"K": 64}
    )
    types = {"s_ptr": "*bf16:16", "t_ptr": "*bf16:16", "target_ptr": "*i64:16", "id_ptr": "*i64:16", "C": "i32:16"}
    types |= {"V": "i32:16", "s_stride": "i32:16", "t_stride": "i32:16", "k": "i32:16"}
    return Variant(
        name=f"rows_{name}_{kind}" + "_at_1" * (not tempered) + "_learned" * by_temperature,
        kernel=kernel,
        signature={arg: types.get(arg, "*fp32:16") for arg in kernel.arg_names if arg not in known},
        constexprs=known,
        warps=tile.warps,
        stages=tile.stages,
        flops=(20 + 15 * sums_first) * vocab_size,
        bytes=(6 if name == "dense" else 4) * vocab_size,
        tile=f"{tile.tokens}",
    )


def _dense_tile(sums_first: bool) -> Tile:
    return TILES["dense, sums first" if sums_first else "dense"]


def _tile(tile: Tile, vocab_size: int) -> int:
    return min(tile.tokens, int(triton.next_power_of_2(vocab_size)))


@triton.jit(do_not_specialize=["C"])
def _dense_rows(
    s_ptr, t_ptr, target_ptr, knob_ptr, out_ptr, s_stride, t_stride, C, V,
    KIND: tl.constexpr, TEMPERED: tl.constexpr, HAS_TEACHER: tl.constexpr, MASKED: tl.constexpr,
    WITH_GRAD: tl.constexpr, BY_TEMPERATURE: tl.constexpr, SUMS_FIRST: tl.constexpr, TILE: tl.constexpr,
    STAGES: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    s_ptr += row * s_stride
    if HAS_TEACHER:
        t_ptr += row * t_stride
    kd, ce, tau, mix = _knobs(knob_ptr)
    cool = 1.0 / tau  # a product costs less than a quotient
    lanes = tl.arange(0, TILE)

    # 1. log-sum-exps: of the student at 1 and at τ, of the teacher at τ, and of what taid puts between them
    m_1, z_1 = _nothing(ACC)
    m_q, z_q = _nothing(ACC)
    m_p, z_p = _nothing(ACC)
    m_u, z_u = _nothing(ACC)
    for start in tl.range(0, V, TILE, num_stages=STAGES):
        at = start + lanes
        z = _load(s_ptr, at, V, MASKED, ACC)
        m_q, z_q = _grow(m_q, z_q, z * cool if TEMPERED else z)
        if TEMPERED:
            m_1, z_1 = _grow(m_1, z_1, z)
        if HAS_TEACHER:
            t = _load(t_ptr, at, V, MASKED, ACC)
            t = t * cool if TEMPERED else t
            m_p, z_p = _grow(m_p, z_p, t)
            if KIND == "taid":
                between = tl.where(at < V, (1 - mix) * (z * cool) + mix * t, -float("inf"))
                m_u, z_u = _grow(m_u, z_u, between)
    l_q = tl.log(z_q)
    l_1 = tl.log(z_1) if TEMPERED else l_q
    m_1 = m_1 if TEMPERED else m_q
    l_p = tl.log(z_p)
    l_u = tl.log(z_u)

    # 2. the value, Σ q·∂D/∂q, and for a learned temperature what multiplies 1/τ
    value = tl.zeros((), ACC)
    sum_q = tl.full((), -1.0, ACC)  # of the forward KL: −Σp
    if HAS_TEACHER and SUMS_FIRST:
        sum_q = tl.zeros((), ACC)
        sum_p = tl.zeros((), ACC)
        along_q, mean_q = tl.zeros((), ACC), tl.zeros((), ACC)
        along_p, mean_p = tl.zeros((), ACC), tl.zeros((), ACC)
        for start in tl.range(0, V, TILE, num_stages=STAGES):
            at = start + lanes
            z, t = _load(s_ptr, at, V, MASKED, ACC), _load(t_ptr, at, V, MASKED, ACC)
            log_q = (z * cool if TEMPERED else z) - m_q - l_q
            log_t = (t * cool if TEMPERED else t) - m_p - l_p
            log_p = _aim(KIND, log_t, log_q, mix, m_p, l_p, m_q, l_q, m_u, l_u)
            term, by_q, by_p = _terms(KIND, log_p, log_q, mix)
            inside = at < V
            value += tl.sum(tl.where(inside, term, 0.0), 0)
            sum_q += tl.sum(tl.where(inside, by_q, 0.0), 0)
            if BY_TEMPERATURE:
                sum_p += tl.sum(tl.where(inside, by_p, 0.0), 0)
                along_q += tl.sum(tl.where(inside, by_q * log_q, 0.0), 0)
                mean_q += tl.sum(tl.where(inside, tl.exp(log_q) * log_q, 0.0), 0)
                along_p += tl.sum(tl.where(inside, by_p * log_t, 0.0), 0)
                mean_p += tl.sum(tl.where(inside, tl.exp(log_p) * log_t, 0.0), 0)
        if BY_TEMPERATURE:
            by_teacher = along_p - sum_p * mean_p
            if KIND == "taid":
                by_teacher = mix * by_teacher
            tl.store(out_ptr + 2 * C + row, -(along_q - sum_q * mean_q + by_teacher) / tau)
    if not BY_TEMPERATURE:
        tl.store(out_ptr + 2 * C + row, tl.zeros((), ACC))

    # 3. the slope (and the value, where it was not needed before)
    target = tl.load(target_ptr + row)
    at_target = _at(s_ptr, target, target >= 0, V, MASKED, ACC)
    target = target.to(tl.int32)
    if WITH_GRAD:
        tl.debug_barrier()  # its logit is about to be overwritten
    if WITH_GRAD or (HAS_TEACHER and not SUMS_FIRST):
        for start in tl.range(0, V, TILE, num_stages=STAGES):
            at = start + lanes
            inside = at < V
            z = _load(s_ptr, at, V, MASKED, ACC)
            grad = ce * tl.exp(z - m_1 - l_1)
            if HAS_TEACHER:
                log_q = (z * cool if TEMPERED else z) - m_q - l_q
                t = _load(t_ptr, at, V, MASKED, ACC)
                log_t = (t * cool if TEMPERED else t) - m_p - l_p
                log_p = _aim(KIND, log_t, log_q, mix, m_p, l_p, m_q, l_q, m_u, l_u)
                term, by_q, _ = _terms(KIND, log_p, log_q, mix)
                if not SUMS_FIRST:
                    value += tl.sum(tl.where(inside, term, 0.0), 0)
                grad += kd * tau * (by_q - tl.exp(log_q) * sum_q)
            if WITH_GRAD:
                grad -= tl.where(at == target, ce, 0.0)
                tl.store(s_ptr + at, grad.to(s_ptr.dtype.element_ty), mask=inside)
    tl.store(out_ptr + row, value)
    tl.store(out_ptr + C + row, l_1 - (at_target - m_1))


@triton.jit(do_not_specialize=["C"])
def _sparse_rows(
    s_ptr, id_ptr, log_prob_ptr, target_ptr, knob_ptr, out_ptr, s_stride, C, V, k,
    KIND: tl.constexpr, TEMPERED: tl.constexpr, WITH_GRAD: tl.constexpr, TILE: tl.constexpr, K: tl.constexpr,
    STAGES: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The top k logits are set aside and replaced by −inf, so that the others are summed without cancellation."""
    row = tl.program_id(0).to(tl.int64)
    s_ptr += row * s_stride
    kd, ce, tau, mix = _knobs(knob_ptr)
    cool = 1.0 / tau  # a product costs less than a quotient
    lanes, top = tl.arange(0, TILE), tl.arange(0, K)
    named = top < k
    ids = tl.load(id_ptr + row * k + top, mask=named, other=0)
    written = named & (ids >= 0) & (ids < V)  # nothing else is touched, and where an id is not, the loss is NaN
    log_k = tl.load(log_prob_ptr + row * k + top, mask=named, other=-float("inf")).to(ACC)
    z_k = _at(s_ptr, ids, written, V, True, ACC)
    target = tl.load(target_ptr + row)
    at_target = _at(s_ptr, target, target >= 0, V, True, ACC)
    at_target = tl.where(tl.sum((named != written).to(tl.int32), 0) > 0, float("nan"), at_target)
    target = target.to(tl.int32)
    tl.debug_barrier()  # everybody has read before anybody writes
    tl.store(s_ptr + ids, -float("inf"), mask=written)
    tl.debug_barrier()

    m_r, z_r = _nothing(ACC)  # of the rest, at τ
    m_1, z_1 = _grow(tl.full((), -float("inf"), ACC), tl.zeros((), ACC), z_k)  # of all, at 1
    for start in tl.range(0, V, TILE, num_stages=STAGES):
        at = start + lanes
        z = tl.load(s_ptr + at, mask=at < V, other=-float("inf")).to(ACC)
        m_r, z_r = _grow(m_r, z_r, z * cool if TEMPERED else z)
        if TEMPERED:
            m_1, z_1 = _grow(m_1, z_1, z)
    s_k = z_k * cool if TEMPERED else z_k
    m_q = tl.maximum(m_r, tl.max(s_k, 0))
    q_rest = tl.where(z_r > 0, z_r * tl.exp(m_r - m_q), 0.0)
    l_q = tl.log(q_rest + tl.sum(tl.exp(s_k - m_q), 0))
    m_1 = m_1 if TEMPERED else m_q
    l_1 = tl.log(z_1) if TEMPERED else l_q

    eps: tl.constexpr = 2.220446049250313e-16 if tl.float64 == ACC else 1.1920928955078125e-07
    log_q = tl.where(named, s_k - m_q - l_q, 0.0)
    log_k = tl.where(named, log_k, 0.0)
    log_q_rest = tl.log(tl.maximum(q_rest * tl.exp(-l_q), eps))
    log_p_rest = tl.log(tl.maximum(1.0 - tl.sum(tl.where(named, tl.exp(log_k), 0.0), 0), eps))
    if KIND == "taid":
        u_k = (1 - mix) * log_q + mix * log_k
        u_rest = (1 - mix) * log_q_rest + mix * log_p_rest
        m_u = tl.maximum(u_rest, tl.max(tl.where(named, u_k, -float("inf")), 0))
        l_u = m_u + tl.log(tl.exp(u_rest - m_u) + tl.sum(tl.where(named, tl.exp(u_k - m_u), 0.0), 0))
        log_k, log_p_rest = u_k - l_u, u_rest - l_u
    term, by_q, _ = _terms(KIND, log_k, log_q, mix)
    term_rest, by_q_rest, _ = _terms(KIND, log_p_rest, log_q_rest, mix)
    sum_q = by_q_rest + tl.sum(tl.where(named, by_q, 0.0), 0)
    tl.store(out_ptr + row, term_rest + tl.sum(tl.where(named, term, 0.0), 0))
    tl.store(out_ptr + C + row, l_1 - (at_target - m_1))
    tl.store(out_ptr + 2 * C + row, tl.zeros((), ACC))

    if WITH_GRAD:
        share = by_q_rest * tl.exp(-log_q_rest) - sum_q  # the rest's slope in the share of each token's probability
        for start in tl.range(0, V, TILE, num_stages=STAGES):
            at = start + lanes
            z = tl.load(s_ptr + at, mask=at < V, other=-float("inf")).to(ACC)
            q = tl.exp((z * cool if TEMPERED else z) - m_q - l_q)
            grad = ce * tl.exp(z - m_1 - l_1) + kd * tau * q * share - tl.where(at == target, ce, 0.0)
            tl.store(s_ptr + at, grad.to(s_ptr.dtype.element_ty), mask=at < V)
        tl.debug_barrier()  # the sweep wrote there too
        grad_k = ce * tl.exp(z_k - m_1 - l_1) + kd * tau * (by_q - tl.exp(log_q) * sum_q)
        z_k = grad_k - tl.where(ids == target, ce, 0.0)
    tl.store(s_ptr + ids, z_k.to(s_ptr.dtype.element_ty), mask=written)


@triton.jit
def _knobs(ptr):
    """kd_weight, ce_weight, temperature, mix."""
    return tl.load(ptr), tl.load(ptr + 1), tl.load(ptr + 2), tl.load(ptr + 3)


@triton.jit
def _nothing(ACC: tl.constexpr):
    """Maximum and sum of no number."""
    return tl.full((), -float("inf"), ACC), tl.zeros((), ACC)


@triton.jit
def _grow(m, z, x):
    """Takes the tile `x` into a row's maximum m and z = Σ e^(x−m)."""
    new = tl.maximum(m, tl.max(x, 0))
    safe = tl.where(new == -float("inf"), 0.0, new)  # −inf − −inf would be NaN
    return new, z * tl.exp(m - safe) + tl.sum(tl.exp(x - safe), 0)


@triton.jit
def _load(ptr, at, V, MASKED: tl.constexpr, ACC: tl.constexpr):
    """The logits of a tile, −inf outside of the vocabulary."""
    x = tl.load(ptr + at, mask=at < V, other=-float("inf")).to(ACC)
    if MASKED:
        x = tl.where(at < V, tl.maximum(x, FLOOR), x)
    return x


@triton.jit
def _at(ptr, places, known, V, MASKED: tl.constexpr, ACC: tl.constexpr):
    """The logits at places that somebody named, −inf for those that are not known or outside of the vocabulary."""
    x = tl.load(ptr + places, mask=known & (places < V), other=-float("inf")).to(ACC)
    if MASKED:
        x = tl.where(known & (places < V), tl.maximum(x, FLOOR), x)
    return x


@triton.jit
def _aim(KIND: tl.constexpr, log_t, log_q, mix, m_p, l_p, m_q, l_q, m_u, l_u):
    """log p of a tile, or for taid log u: between student and teacher, normalised by the log-sum-exp of logits."""
    if KIND == "taid":
        log_t = (1 - mix) * (log_q + m_q + l_q) + mix * (log_t + m_p + l_p) - m_u - l_u
    return log_t


@triton.jit
def _terms(KIND: tl.constexpr, log_p, log_q, mix):
    """The value's terms, q·∂D/∂q and p·∂D/∂p: as `divergences.py` has them."""
    p, q = tl.exp(log_p), tl.exp(log_q)
    tiny = 1.1754943508222875e-38
    if KIND == "forward_kl" or KIND == "taid":
        gap = p * (log_p - log_q)
        return gap, -p, gap
    elif KIND == "reverse_kl":
        gap = q * (log_q - log_p)
        return gap, gap, -q
    elif KIND == "jsd":
        log_m = tl.log(tl.maximum(mix * p + (1 - mix) * q, tiny))
        of_p, of_q = mix * p * (log_p - log_m), (1 - mix) * q * (log_q - log_m)
        return of_p + of_q, of_q, of_p
    elif KIND == "skew_forward_kl":
        m = tl.maximum(mix * p + (1 - mix) * q, tiny)
        gap = p * (log_p - tl.log(m))
        return gap, -(1 - mix) * q * p / m, gap - mix * p * p / m
    elif KIND == "skew_reverse_kl":
        m = tl.maximum((1 - mix) * p + mix * q, tiny)
        gap = q * (log_q - tl.log(m))
        return gap, gap - mix * q * q / m, -(1 - mix) * q * p / m
    else:
        tl.static_assert(KIND == "tvd")
        sign = tl.where(q > p, 0.5, tl.where(q < p, -0.5, 0.0))
        return tl.abs(q - p) * 0.5, q * sign, -p * sign
