import json
import shutil
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tutelage.data.tokenizer import train
from tutelage.errors import UserError
from tutelage.runs import is_student
from tutelage.store import publish
from tutelage.student.config import StudentOptions, resolve
from tutelage.student.decoder import Decoder
from tutelage.student.generate import generate
from tutelage.student.weights import (
    find_student,
    load_student,
    save_student,
)

TINY = resolve(StudentOptions(n_layers=3, n_heads=4, n_kv_heads=2, d_model=32, d_ff=48), 257, "nano")
STARCODER = {"norm": "layernorm", "mlp": "gelu", "bias": True, "qkv_bias": True, "tie_embeddings": False}


def make(seed=0, **changes):
    torch.manual_seed(seed)
    model = Decoder(replace(TINY, **changes))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.fixture(scope="module")
def tokenizer():
    return train(["def add(a, b):\n    return a + b\n"], 257)


@pytest.fixture(scope="module")
def saved(tokenizer, tmp_path_factory):
    directory = tmp_path_factory.mktemp("students") / "student"
    save_student(make(), tokenizer, directory)
    return directory


@pytest.fixture
def copied(saved, tmp_path):
    """A copy of a student directory, to be broken."""
    return shutil.copytree(saved, tmp_path / "student")


def same_weights(a, b):
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def checkpoint(run, step, tokenizer, seed):
    with publish(run / "checkpoints" / f"step-{step}") as aside:
        save_student(make(seed), tokenizer, aside / "student")


@pytest.mark.parametrize("changes", [{}, STARCODER, {"position": "sinusoidal", "d_head": 6, "dropout": 0.1}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip_is_bit_equal(tokenizer, tmp_path, changes, dtype):
    model = make(**changes).to(dtype)
    save_student(model, tokenizer, tmp_path / "new" / "student")
    loaded = load_student(tmp_path / "new" / "student")
    assert loaded.model.config == model.config
    assert loaded.tokenizer.fingerprint == tokenizer.fingerprint
    assert same_weights(loaded.model, model)
    tokens = torch.arange(12).view(2, 6)
    with torch.no_grad():
        assert torch.equal(loaded.model(tokens).hidden, model(tokens).hidden)


@pytest.mark.parametrize("rows", [257, 300, 512])
def test_a_vocabulary_that_is_padded_otherwise_is_padded_as_ours(tokenizer, tmp_path, rows):
    """As that of a model from elsewhere is, whose modules a decoder shares."""
    model, tokens = make(tie_embeddings=False), torch.arange(6)[None]
    expected = model.logits(model(tokens).hidden)
    for module in (model.embed_tokens, model.lm_head):
        missing = rows - 257
        module.weight = torch.nn.Parameter(F.pad(module.weight.detach()[:257], (0, 0, 0, missing), value=9.0))
    save_student(model, tokenizer, tmp_path)
    loaded = load_student(tmp_path).model
    assert loaded.head.shape == (320, 32)
    torch.testing.assert_close(loaded.logits(loaded(tokens).hidden), expected)


def test_a_student_from_before_a_field_was_there_has_its_default(copied):
    record = json.loads((copied / "config.json").read_text())
    for field in ("mlp_bias", "qk_norm"):
        del record[field]
    (copied / "config.json").write_text(json.dumps(record))
    assert load_student(copied).model.config == TINY


def test_a_loaded_student_is_ready_for_inference(saved):
    model = load_student(saved, dtype=torch.bfloat16).model
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.head is model.embed_tokens.weight  # tied again, not two copies


def test_complete_continues_the_prompt(saved, tokenizer):
    student = load_student(saved)
    ids = generate(student.model, [tokenizer.encode("def")], max_new_tokens=9, end_ids={tokenizer.eos_id})[0]
    assert student.complete("def", max_new_tokens=9) == tokenizer.decode(ids)
    first, again, other = (student.complete("def", temperature=1.0, seed=seed) for seed in (0, 0, 1))
    assert first == again != other


def test_a_run_gives_its_newest_checkpoint(tokenizer, tmp_path):
    for step, seed in ((9, 1), (10, 2)):  # newest by number, not by name
        checkpoint(tmp_path, step, tokenizer, seed)
    assert same_weights(load_student(tmp_path).model, make(2))
    assert same_weights(load_student(tmp_path / "checkpoints" / "step-9").model, make(1))
    assert find_student(tmp_path / "checkpoints" / "step-9" / "student").name == "student"


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_checkpoint_is_passed_over(tokenizer, tmp_path, damage):
    for step, seed in ((9, 1), (10, 2)):
        checkpoint(tmp_path, step, tokenizer, seed)
    file = tmp_path / "checkpoints" / "step-10" / "student" / "model.safetensors"
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[-5] ^= 1
        file.write_bytes(content)
    elif damage == "truncate":
        file.write_bytes(content[:-100])
    else:
        file.unlink()
    assert same_weights(load_student(tmp_path).model, make(1))
    shutil.rmtree(tmp_path / "checkpoints" / "step-9")
    with pytest.raises(UserError, match="no student at"):
        load_student(tmp_path)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
def test_a_missing_file_is_a_user_error(copied, missing):
    (copied / missing).unlink()
    with pytest.raises(UserError, match=str(copied)):
        load_student(copied)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe\x00", None])
def test_a_broken_file_is_a_user_error(copied, name, content):
    whole = (copied / name).read_bytes()
    (copied / name).write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(UserError, match=str(copied)):
        load_student(copied)


@pytest.mark.parametrize(
    "change",
    [{"d_model": 64}, {"n_layers": 2}, {"n_layers": 4}, {"tie_embeddings": False}, {"n_heads": 5}, {"colour": "red"}],
)
def test_a_configuration_that_does_not_fit_the_weights_is_a_user_error(copied, change):
    record = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(record | change))
    with pytest.raises(UserError):
        load_student(copied)


def test_another_tokenizer_is_a_user_error(copied):
    other = train(["x = 1\n" * 20, "while True: pass\n" * 20], 259)
    other.save(copied)
    with pytest.raises(UserError, match="another tokenizer"):
        load_student(copied)


def test_nowhere_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=str(tmp_path / "nowhere")):
        load_student(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no student at"):
        load_student(tmp_path)


def test_a_transformers_directory_is_no_student(saved, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert is_student(saved)
    assert not is_student(tmp_path)
