"""Latency is measured on the path that generation takes."""

import time

import torch

from tutelage.evaluation.latency import NEW_TOKENS, REPEATS, latency


class Slow:
    """A model whose prompt takes 20 ms and each token 2 ms."""

    def __init__(self):
        self.calls = []

    def new_cache(self, batch, max_len):
        return None

    def step(self, tokens, cache, counts=None):
        self.calls.append(tokens.shape[1])
        time.sleep(0.02 if tokens.shape[1] > 1 else 0.002)
        return torch.zeros(*tokens.shape, 5)


def test_prompt_and_tokens_are_told_apart():
    model = Slow()
    found = latency(model, vocab_size=5)
    assert 19 < found["prompt_ms"] < 60
    assert 1.9 < found["token_ms_p50"] < 15
    assert found["token_ms_p50"] <= found["token_ms_p95"]
    assert found["tokens_per_s"] < 1000 / 1.9
    assert model.calls.count(1) == REPEATS * NEW_TOKENS
