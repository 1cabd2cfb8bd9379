"""How long a model takes: the prompt, then each token, one sequence at a time."""

import time

import numpy as np
import torch

from tutelage.student.cache import CausalLM

PROMPT_TOKENS = 128
NEW_TOKENS = 48
REPEATS = 3


@torch.no_grad()
def latency(model: CausalLM, vocab_size: int, device: str = "cpu") -> dict[str, float]:
    """Prompt latency (best of three, ms), time per token (p50 and p95, ms) and tokens/s at batch 1.

    The prompt has 128 tokens and 48 more are generated greedily, each step from token to token on the host.
    """
    tokens = torch.arange(PROMPT_TOKENS, device=device)[None] % vocab_size
    prompt_ms, token_ms = [], []
    for _ in range(REPEATS):
        cache = model.new_cache(1, PROMPT_TOKENS + NEW_TOKENS)
        started = time.perf_counter()
        token = int(model.step(tokens, cache)[0, -1].argmax())
        prompt_ms.append(1e3 * (time.perf_counter() - started))
        for _ in range(NEW_TOKENS):
            started = time.perf_counter()
            token = int(model.step(torch.tensor([[token]], device=device), cache)[0, -1].argmax())
            token_ms.append(1e3 * (time.perf_counter() - started))
    p50, p95 = np.percentile(token_ms, [50, 95])
    return {
        "prompt_ms": min(prompt_ms),
        "token_ms_p50": float(p50),
        "token_ms_p95": float(p95),
        "tokens_per_s": 1e3 / float(np.mean(token_ms)),
    }
