import json
import shutil
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tutelage.data.tokenizer import train
from tutelage.errors import UserError
from tutelage.store import publish
from tutelage.student.config import StudentOptions, resolve
from tutelage.student.decoder import Decoder
from tutelage.student.generate import generate
from tutelage.student.weights import (
    config_from_huggingface,
    find_student,
    from_huggingface,
    initialise,
    is_student,
    load_student,
    save_student,
    spaced_layers,
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


# --- directories -----------------------------------------------------------------------------------------------


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


# --- weights of a teacher --------------------------------------------------------------------------------------


@given(n_student=st.integers(1, 40), n_teacher=st.integers(1, 80))
def test_layers_are_spread_first_to_first_and_last_to_last(n_student, n_teacher):
    layers = spaced_layers(n_teacher, n_student)
    assert len(layers) == n_student
    assert layers[-1] == n_teacher - 1
    assert all(0 <= layer < n_teacher for layer in layers)
    if n_student > 1:
        gaps = [b - a for a, b in pairwise(layers)]
        assert layers[0] == 0
        assert max(gaps) - min(gaps) <= 1


def test_layers_by_hand():
    assert spaced_layers(30, 6) == [0, 6, 12, 17, 23, 29]
    assert spaced_layers(4, 4) == [0, 1, 2, 3]


def test_random_touches_nothing():
    student, before = make(0), make(0)
    initialise(student, make(1), "random")
    initialise(student, None, "random")
    assert same_weights(student, before)


@pytest.mark.parametrize("student_tied", [True, False])
@pytest.mark.parametrize("teacher_tied", [True, False])
def test_embeddings_copies_them_and_the_head_alone(student_tied, teacher_tied):
    student, teacher = make(0, tie_embeddings=student_tied), make(1, tie_embeddings=teacher_tied, n_layers=5)
    before = make(0, tie_embeddings=student_tied)
    initialise(student, teacher, "embeddings")
    assert torch.equal(student.embed_tokens.weight, teacher.embed_tokens.weight)
    if not student_tied:
        assert torch.equal(student.lm_head.weight, teacher.head)
    assert same_weights(student.layers, before.layers)
    assert same_weights(student.norm, before.norm)
    assert student.embed_tokens.weight is not teacher.embed_tokens.weight


@pytest.mark.parametrize("changes", [{}, STARCODER])
def test_layers_copies_the_spaced_ones(changes):
    student, teacher = make(0, **changes), make(1, n_layers=7, **changes)
    initialise(student, teacher, "layers")
    for ours, theirs in ((0, 0), (1, 3), (2, 6)):
        assert same_weights(student.layers[ours], teacher.layers[theirs])
    assert same_weights(student.norm, teacher.norm)
    assert torch.equal(student.head, teacher.head)


def test_all_layers_of_a_twin_make_it_the_teacher():
    student, teacher = make(0), make(1)
    initialise(student, teacher, "layers")
    tokens = torch.arange(10)[None]
    assert torch.equal(student(tokens).hidden, teacher(tokens).hidden)
    with torch.no_grad():  # a copy, not a view
        student.layers[0].mlp.up_proj.weight.zero_()
    assert teacher.layers[0].mlp.up_proj.weight.abs().sum() > 0


@pytest.mark.parametrize("init", ["embeddings", "layers"])
def test_another_width_is_refused_naming_both(init):
    with pytest.raises(UserError, match=r"32.*64|64.*32"):
        initialise(make(0), make(1, d_model=64), init)


@pytest.mark.parametrize("changes", [{"d_ff": 52}, {"n_kv_heads": 4}, {"norm": "layernorm"}, {"mlp": "gelu"}])
def test_layers_of_another_shape_are_refused(changes):
    with pytest.raises(UserError, match=r"--student\.init layers"):
        initialise(make(0), make(1, **changes), "layers")


@pytest.mark.parametrize("changes", [{"rope_theta": 5e5}, {"position": "sinusoidal"}])
def test_layers_for_other_positions_are_refused(changes):
    with pytest.raises(UserError, match="positions differ"):
        initialise(make(0), make(1, **changes), "layers")


def test_layers_cut_into_other_heads_are_refused():
    """The matrices have the same shapes, but their rows mean another rotation and another softmax."""
    with pytest.raises(UserError, match=r"--student\.init layers"):
        initialise(make(0), make(1, n_heads=8, n_kv_heads=4), "layers")


@pytest.mark.parametrize("init", ["embeddings", "layers"])
def test_a_teacher_of_unknown_arithmetic_is_refused(init):
    with pytest.raises(UserError, match=f"init {init}"):
        initialise(make(0), None, init)


def test_embeddings_of_an_unpadded_teacher():
    """A transformers model has as many rows as tokens; the student's padding is no reason to refuse it."""
    student, teacher = make(0), make(1)
    teacher.embed_tokens = torch.nn.Embedding.from_pretrained(teacher.embed_tokens.weight[:257].clone())
    initialise(student, teacher, "embeddings")
    assert torch.equal(student.head[:257], teacher.head)


# --- transformers ----------------------------------------------------------------------------------------------


def llama(**changes):
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {
        "vocab_size": 101,
        "hidden_size": 32,
        "intermediate_size": 56,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
        "rms_norm_eps": 1e-3,
    }
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**shape | changes)).eval()


def starcoder2(**changes):
    from transformers import Starcoder2Config, Starcoder2ForCausalLM

    shape = {
        "vocab_size": 101,
        "hidden_size": 32,
        "intermediate_size": 56,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
        "norm_epsilon": 1e-3,
        "sliding_window": None,
        "residual_dropout": 0.0,
        "embedding_dropout": 0.0,
    }
    torch.manual_seed(0)
    model = Starcoder2ForCausalLM(Starcoder2Config(**shape | changes)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # zero by default, and a forgotten one would not show
            torch.nn.init.normal_(parameter, std=0.3)
    return model


PARITY = [
    (llama, {}),
    (llama, {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    (llama, {"head_dim": 12, "num_key_value_heads": 1}),
    (llama, {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    (starcoder2, {}),
    (starcoder2, {"tie_word_embeddings": False, "use_bias": False}),
    (starcoder2, {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "num_key_value_heads": 1}),
]


@pytest.mark.parametrize(("build", "changes"), PARITY)
def test_arithmetic_is_that_of_transformers(build, changes):
    theirs = build(**changes)
    ours = from_huggingface(theirs, theirs.config.to_dict())
    tokens = torch.randint(101, (2, 33), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(tokens).logits
        assert expected.std() > 0.1
        torch.testing.assert_close(ours.logits(ours(tokens).hidden), expected, rtol=1e-4, atol=1e-4)
        cache = ours.new_cache(2, 33)
        stepped = torch.cat([ours.step(part, cache) for part in tokens.split(11, 1)], 1)
    torch.testing.assert_close(stepped, expected, rtol=1e-4, atol=1e-4)
    assert ours.embed_tokens.weight is theirs.model.embed_tokens.weight  # shared, not copied


def test_training_gradients_are_those_of_transformers():
    theirs, twin = llama(), llama()
    ours = from_huggingface(theirs, theirs.config.to_dict())
    tokens = torch.randint(101, (2, 17), generator=torch.Generator().manual_seed(0))
    ours.logits(ours(tokens).hidden).square().sum().backward()
    twin(tokens).logits.square().sum().backward()
    for mine, other in zip(theirs.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-3 * other.grad.abs().max().item())


def test_greedy_generation_is_that_of_transformers():
    theirs = llama()
    ours = from_huggingface(theirs, theirs.config.to_dict())
    prompt = [5, 6, 7, 8]
    expected = theirs.generate(
        torch.tensor([prompt]), max_new_tokens=10, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert generate(ours, [prompt], max_new_tokens=10, end_ids={-1}) == [expected[0, 4:].tolist()]


def test_a_sliding_window_is_not_taken_for_full_attention():
    theirs = starcoder2(sliding_window=4)
    ours = from_huggingface(theirs, theirs.config.to_dict())
    tokens = torch.randint(101, (1, 33), generator=torch.Generator().manual_seed(0))
    if ours is not None and ours.config.max_seq_len > 4:
        with torch.no_grad():
            torch.testing.assert_close(ours.logits(ours(tokens).hidden), theirs(tokens).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "gemma2"},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}},
        {"hidden_act": "gelu"},
        {"attention_bias": True},
        {"mlp_bias": True},
    ],
)
def test_other_arithmetic_is_not_taken_for_ours(change):
    record = {
        "model_type": "llama",
        "vocab_size": 101,
        "hidden_size": 32,
        "intermediate_size": 56,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-3,
    }
    assert config_from_huggingface(record) is not None
    assert config_from_huggingface(record | change) is None


def test_starcoder2_with_another_activation_is_not_taken_for_ours():
    assert config_from_huggingface(starcoder2(hidden_act="relu").config.to_dict()) is None


def test_older_configurations_name_theta_at_the_top():
    record = llama().config.to_dict()
    record.pop("rope_parameters")
    assert config_from_huggingface(record | {"rope_theta": 123.0}).rope_theta == 123.0
