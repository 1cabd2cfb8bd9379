"""A student's first weights, and the shape that they bring."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tutelage.data.tokenizer import Tokenizer, train
from tutelage.errors import UserError
from tutelage.student.config import StudentOptions, resolve
from tutelage.student.decoder import Decoder
from tutelage.student.initialise import check_vocabulary, initialise, read_start, shape_of, spaced_layers
from tutelage.student.weights import save_student

TINY = resolve(StudentOptions(n_layers=3, n_heads=4, n_kv_heads=2, d_model=32, d_ff=48), 257, "nano")
STARCODER = {"norm": "layernorm", "mlp": "gelu", "bias": True, "qkv_bias": True, "tie_embeddings": False}


def make(seed=0, **changes):
    torch.manual_seed(seed)
    model = Decoder(replace(TINY, **changes))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def same_weights(a, b):
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


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


def test_layers_with_norms_of_queries_and_keys_have_them_in_both():
    student, teacher = make(0, qk_norm=True), make(1, qk_norm=True)
    initialise(student, teacher, "layers")
    assert same_weights(student, teacher)
    with pytest.raises(UserError, match=r"differ in .*q_norm\.weight"):
        initialise(make(0), teacher, "layers")


# --- another model, shape included -----------------------------------------------------------------------------


@pytest.fixture
def source(tokenizer, tmp_path):
    """A student directory to start from, whose shape is no preset's."""
    shape = {"vocab_size": 600, "n_layers": 2, "d_head": 6, "qkv_bias": True, "bias": True, "mlp_bias": False}
    save_student(make(5, **shape, dropout=0.1).bfloat16(), tokenizer, tmp_path / "source")
    return tmp_path / "source"


def test_the_shape_is_the_sources(source):
    shape = shape_of(StudentOptions(init=str(source)), 123, "30m")
    assert shape == replace(
        TINY, vocab_size=123, n_layers=2, d_head=6, qkv_bias=True, bias=True, mlp_bias=False, dropout=0.1
    )


def test_flags_that_say_the_same_and_those_that_are_free_may_be_given(source):
    options = StudentOptions(
        init=str(source), n_layers=2, d_head=6, mlp_bias=False, tie_embeddings=True, dropout=0.0, max_seq_len=9999
    )
    shape = shape_of(options, 600, "30m")
    assert (shape.dropout, shape.max_seq_len, shape.n_layers) == (0.0, 9999, 2)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (
            {"n_layers": 3},
            r"--student\.n_layers 3: --student\.init \S+ brings its own shape, with 2: leave the flag out",
        ),
        ({"mlp_bias": True}, r"--student\.mlp_bias True: .*, with False"),
        ({"tie_embeddings": False}, r"--student\.tie_embeddings False: .*, with True"),
        ({"d_head": 8}, r"--student\.d_head 8: .*, with 6"),
        ({"position": "sinusoidal"}, r"--student\.position sinusoidal: .*, with rope"),
        ({"preset": "nano"}, r"--student\.preset nano: --student\.init \S+ brings its own shape: leave the preset out"),
    ],
)
def test_flags_against_the_sources_shape_are_refused(source, flags, line):
    with pytest.raises(UserError, match=line):
        shape_of(StudentOptions(init=str(source), **flags), 600, "30m")


def test_a_shape_that_is_known_needs_no_source():
    options = StudentOptions(init="./gone", dropout=0.5)
    assert shape_of(options, 300, "30m", TINY) == replace(TINY, vocab_size=300, dropout=0.5)
    with pytest.raises(UserError, match=r"--student\.d_ff 99"):
        shape_of(replace(options, d_ff=99), 300, "30m", TINY)


def test_a_preset_has_what_is_known_of_another_run_not_to_heed():
    assert shape_of(StudentOptions(), 300, "nano", TINY) == resolve(StudentOptions(), 300, "nano")


def test_all_weights_are_copied_to_fp32(source, tokenizer):
    start = read_start(str(source), tokenizer)
    student = Decoder(shape_of(StudentOptions(init=str(source)), 600, "nano", start.config))
    initialise(student, start, str(source))
    assert same_weights(student, start)
    assert {parameter.dtype for parameter in student.parameters()} == {torch.float32}
    assert not {p.data_ptr() for p in student.parameters()} & {p.data_ptr() for p in start.parameters()}


def test_only_what_ids_mean_must_be_the_teachers(source, tokenizer):
    """The base and the chat model of one family name other tokens as the end of a text."""
    other = Tokenizer(tokenizer._prompts, {"eos_token": tokenizer._prompts.id_to_token(300)})
    assert other.fingerprint != tokenizer.fingerprint
    check_vocabulary(other, tokenizer, "x")
    more = tokenizer._prompts.from_str(tokenizer._prompts.to_str())
    more.add_special_tokens(["<|more|>"])
    larger = Tokenizer(more, tokenizer.specials)
    check_vocabulary(larger, tokenizer, "x")
    with pytest.raises(UserError, match=r"of 600 tokens is not the teacher's of 601: id 600 is None there and b'<\|mo"):
        check_vocabulary(tokenizer, larger, "x")
    with pytest.raises(UserError, match=r"--student\.init \S+: its vocabulary of 600 tokens.*of 258: id 257 is b'"):
        read_start(str(source), train(["zq" * 50], 258))
