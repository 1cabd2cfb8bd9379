"""Which weights a model has, by their content: the same wherever they lie and in however many files."""

import hashlib

import torch
from torch import nn

SAMPLES = 64


def weights_fingerprint(model: nn.Module) -> str:
    """A hash of every parameter's name, shape and up to 64 of its values, evenly spaced and rounded to bf16.

    It is the same for a checkpoint read from another path, from other files, onto another device, in bf16 or fp32,
    and on another machine. Packed (4-bit) parameters differ between devices and are left out; tied ones count once.
    It tells models and their fine-tunings apart; it does not see a change between the samples.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if not parameter.is_floating_point():
            continue
        values = parameter.detach().reshape(-1)
        sample = values[:: max(1, len(values) // SAMPLES)][:SAMPLES].float().bfloat16()
        digest.update(f"{name} {tuple(parameter.shape)}\n".encode())
        digest.update(sample.view(torch.int16).cpu().numpy().astype("<i2").tobytes())
    return digest.hexdigest()
