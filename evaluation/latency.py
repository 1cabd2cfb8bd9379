"""How long a model takes and how much memory: the prompt, then each token, alone and with others beside it."""

import ctypes
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from tutelage.student.cache import CausalLM

PROMPT_TOKENS = 128
NEW_TOKENS = 48
REPEATS = 3
BATCHES = (1, 8, 32)


@torch.no_grad()
def latency(model: CausalLM, vocab_size: int, device: str = "cpu") -> dict[str, float]:
    """Prompt latency (best of three, ms), time per token (p50 and p95, ms), tokens/s at batch 1, 8 and 32, and the
    most bytes that generation at batch 32 held beyond the weights.

    The prompt has 128 tokens and 48 more are generated greedily, each step from token to token on the host.
    """
    prompt_ms, token_ms = [], []
    for _ in range(REPEATS):
        prompt, tokens = _generate(model, 1, vocab_size, device)
        prompt_ms.append(prompt)
        token_ms += tokens
    p50, p95 = np.percentile(token_ms, [50, 95])
    found = {
        "prompt_ms": min(prompt_ms),
        "token_ms_p50": float(p50),
        "token_ms_p95": float(p95),
        "tokens_per_s": 1e3 / float(np.mean(token_ms)),
    }
    start = _held(device, reset=True)
    for batch in BATCHES[1:]:
        _, token_ms = _generate(model, batch, vocab_size, device)
        found[f"tokens_per_s_batch_{batch}"] = 1e3 * batch / float(np.mean(token_ms))
    if start is not None:
        found["working_bytes"] = max(0, (_held(device) or 0) - start)
    return found


def _generate(model: CausalLM, batch: int, vocab_size: int, device: str) -> tuple[float, list[float]]:
    """Milliseconds of the prompt and of each token after it, for `batch` sequences at once."""
    tokens = torch.arange(PROMPT_TOKENS, device=device).expand(batch, -1) % vocab_size  # (B, T)
    cache = model.new_cache(batch, PROMPT_TOKENS + NEW_TOKENS)
    marks = [time.perf_counter()]
    for _ in range(1 + NEW_TOKENS):
        new = model.step(tokens, cache)[:, -1].argmax(-1).tolist()  # on the host, as a caller would have it
        tokens = torch.tensor(new, device=device)[:, None]
        marks.append(time.perf_counter())
    prompt, *rest = (1e3 * (after - before) for before, after in pairwise(marks))
    return prompt, rest


def _held(device: str, reset: bool = False) -> int | None:
    """With `reset`, the bytes held now; without, the most since then. None where the system does not tell."""
    if torch.device(device).type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_allocated(device)
    try:
        if reset:
            ctypes.CDLL(None).malloc_trim(0)  # or memory that others freed would hide what this one needs
            Path("/proc/self/clear_refs").write_text("5")  # the peak becomes what is held
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    except (OSError, IndexError, AttributeError):
        return None
