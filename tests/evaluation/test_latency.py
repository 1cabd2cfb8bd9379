"""Latency is measured on the path that generation takes."""

import time

import torch

from tutelage.evaluation.latency import BATCHES, NEW_TOKENS, REPEATS, latency


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
    assert model.calls.count(1) == (REPEATS + len(BATCHES) - 1) * NEW_TOKENS


def test_more_at_once_is_more_tokens_and_what_they_take_is_seen():
    model = Slow()
    model.new_cache = lambda batch, max_len: torch.ones(batch << 19)  # 2 MiB a row
    found = latency(model, vocab_size=5)
    assert 4 < found["tokens_per_s_batch_8"] / found["tokens_per_s"] < 12
    assert found["tokens_per_s_batch_32"] > 2 * found["tokens_per_s_batch_8"]
    assert 50 << 20 < found["working_bytes"] < 150 << 20
