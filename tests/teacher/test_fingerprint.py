"""A fingerprint of weights: the same for the same content, whatever holds it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tutelage.teacher.fingerprint import weights_fingerprint
from tutelage.teacher.registry import load_teacher


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 30), nn.LayerNorm(30), nn.Linear(30, 2)).bfloat16()


def test_it_is_known_in_advance() -> None:
    """Another machine, another version of torch: a run recorded there must find the same."""
    plain = nn.Linear(3, 2)
    with torch.no_grad():
        plain.weight.copy_(torch.arange(6.0).view(2, 3) / 7)
        plain.bias.copy_(torch.tensor([-1.5, 1e-30]))
    assert weights_fingerprint(plain) == "b8e7b539de4d598e3a63063f0bca858aa79028420a5d5f60f77f8b46186f9308"


def test_dtype_and_strides_do_not_count() -> None:
    expected = weights_fingerprint(model())
    assert weights_fingerprint(model().float()) == expected
    turned = model()
    turned[0].weight = nn.Parameter(turned[0].weight.detach().t().contiguous().t())  # the same values, other strides
    assert weights_fingerprint(turned) == expected


def scale(m: nn.Sequential) -> None:
    m[2].weight.data *= 1.01


def rename(m: nn.Sequential) -> None:
    m._modules["other"] = m._modules.pop("2")


def reshape(m: nn.Sequential) -> None:
    m[0].weight = nn.Parameter(m[0].weight.detach().reshape(40, 30))


@pytest.mark.parametrize("change", [scale, rename, reshape])
def test_values_names_and_shapes_count(change: Callable[[nn.Sequential], None]) -> None:
    changed = model()
    change(changed)
    assert weights_fingerprint(changed) != weights_fingerprint(model())


def test_packed_parameters_are_left_out() -> None:
    packed = model()
    packed.register_parameter("packed", nn.Parameter(torch.ones(8, dtype=torch.uint8), requires_grad=False))
    assert weights_fingerprint(packed) == weights_fingerprint(model())


@pytest.mark.parametrize("kind", ["teacher_dir", "llama_dir"])
def test_a_teacher_carries_it_whatever_its_path_dtype_and_files(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder: Path = request.getfixturevalue(kind)
    moved = tmp_path / "moved"
    moved.symlink_to(folder)
    teacher = load_teacher(str(folder))
    assert len(teacher.spec.weights) == 64
    assert load_teacher(str(moved), dtype=torch.float32).spec.weights == teacher.spec.weights
    if kind == "llama_dir":
        from transformers import AutoModelForCausalLM

        sharded = AutoModelForCausalLM.from_pretrained(folder)
        sharded.save_pretrained(tmp_path / "pieces", max_shard_size="100KB")
        for file in folder.glob("*token*"):
            (tmp_path / "pieces" / file.name).write_bytes(file.read_bytes())
        assert len(list((tmp_path / "pieces").glob("*.safetensors"))) > 1
        assert load_teacher(str(tmp_path / "pieces")).spec.weights == teacher.spec.weights


def test_other_weights_are_another_teacher(llama_dir: Path, starcoder_dir: Path) -> None:
    assert load_teacher(str(llama_dir)).spec.weights != load_teacher(str(starcoder_dir)).spec.weights
