"""Batched generation with any causal LM that has a KV cache.

Shapes: B rows, V vocabulary.
"""

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from tutelage.student.cache import CausalLM

Stop = Callable[[list[int]], bool]


@torch.no_grad()
def generate(
    model: CausalLM,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    end_ids: Collection[int],
    temperature: float = 0.0,
    seed: int = 0,
    stop: Stop | None = None,
    device: str | torch.device = "cpu",
    broadcast: Callable[[Tensor], Tensor] = lambda tokens: tokens,
) -> list[list[int]]:
    """New tokens of each prompt, up to the first of `end_ids`, which is left out, or to the model's context.

    `temperature` 0 is greedy. `stop` looks at a row's new tokens after each one and ends the row when true. Rows
    that end leave the batch. `broadcast` makes the sampled tokens `(B,)` the same in all processes that share the
    model: one that stopped alone would leave the others waiting for its weights. Raises ValueError for an empty prompt,
    and for one beyond the context.
    """
    if not all(prompts):
        raise ValueError("every prompt needs at least one token")
    if not prompts:
        return []
    sizes = [len(prompt) for prompt in prompts]
    longest, context = max(sizes), model.context or max(sizes) + max_new_tokens
    if longest > context:
        raise ValueError(f"a prompt of {longest} tokens is longer than the model's context of {context}")
    counts = torch.tensor(sizes, device=device)
    padded = [[*prompt, *[prompt[-1]] * (longest - len(prompt))] for prompt in prompts]
    cache = model.new_cache(len(prompts), min(longest + max_new_tokens, context))
    logits = model.step(torch.tensor(padded, device=device), cache, counts)[:, -1]  # (B, V)
    sampler = torch.Generator(device=device).manual_seed(seed)
    done: list[list[int]] = [[] for _ in prompts]
    alive = list(range(len(prompts)))
    for _ in range(max_new_tokens):
        tokens = broadcast(sample(logits, temperature, sampler))  # (B,)
        kept = []
        for slot, token in enumerate(tokens.tolist()):
            new = done[alive[slot]]
            if token in end_ids:
                continue
            new.append(token)
            room = min(max_new_tokens, context - sizes[alive[slot]])
            if len(new) < room and not (stop and stop(new)):
                kept.append(slot)
        if not kept:
            break
        if len(kept) < len(alive):
            rows = torch.tensor(kept, device=device)
            cache.select(rows)
            tokens, alive = tokens[rows], [alive[slot] for slot in kept]
        logits = model.step(tokens[:, None], cache)[:, -1]
    return done


def sample(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """One token per row of `logits (B, V)`: the likeliest at temperature 0, else drawn from softmax(logits / T)."""
    if temperature == 0:
        return logits.argmax(-1)
    probabilities = torch.softmax(logits.float() / temperature, -1)
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
