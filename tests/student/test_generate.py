import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.student.config import StudentOptions, resolve
from tutelage.student.decoder import Decoder
from tutelage.student.generate import generate, sample

NO_EOS = 49
PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [8], [9, 10, 11], [1, 2, 3, 4]]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    options = StudentOptions(n_layers=2, n_heads=4, n_kv_heads=2, d_model=32, d_ff=48, tie_embeddings=False)
    model = Decoder(resolve(options, 50, "nano"))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        model.head[NO_EOS] = 0.0
    return model.eval()


def naive(model, prompt, limit, eos_id, stop=None):
    """Greedy decoding that recomputes everything for every token."""
    new = []
    while len(new) < limit:
        token = int(model.logits(model(torch.tensor([[*prompt, *new]])).hidden)[0, -1].argmax())
        if token == eos_id:
            break
        new.append(token)
        if stop and stop(new):
            break
    return new


@settings(max_examples=10, deadline=None)
@given(
    prompts=st.lists(st.lists(st.integers(0, 48), min_size=1, max_size=8), min_size=1, max_size=5),
    limit=st.integers(1, 12),
    eos_id=st.integers(0, 49),
)
def test_greedy_is_a_full_recompute_of_each_row(model, prompts, limit, eos_id):
    expected = [naive(model, prompt, limit, eos_id) for prompt in prompts]
    assert generate(model, prompts, max_new_tokens=limit, end_ids={eos_id}) == expected


def test_rows_end_at_their_own_end_of_text(model):
    free = [naive(model, prompt, 20, NO_EOS) for prompt in PROMPTS]
    eos_id = free[0][3]
    expected = [naive(model, prompt, 20, eos_id) for prompt in PROMPTS]
    assert len({len(row) for row in expected}) > 1  # rows do leave at different times
    out = generate(model, PROMPTS, max_new_tokens=20, end_ids={eos_id})
    assert out == expected
    assert all(eos_id not in row for row in out)


def test_stop_sees_only_its_row_and_keeps_the_token_it_stopped_at(model):
    def stop(new):
        return len(new) >= 2 and sum(new) % 3 == 0

    expected = [naive(model, prompt, 15, NO_EOS, stop) for prompt in PROMPTS]
    assert len({len(row) for row in expected}) > 1
    assert generate(model, PROMPTS, max_new_tokens=15, end_ids={NO_EOS}, stop=stop) == expected


@pytest.mark.parametrize("limit", [0, 1, 2, 30])
def test_never_more_than_the_limit(model, limit):
    out = generate(model, PROMPTS, max_new_tokens=limit, end_ids={NO_EOS})
    assert [len(row) for row in out] == [len(naive(model, prompt, limit, NO_EOS)) for prompt in PROMPTS]
    assert max(map(len, out)) <= limit


@pytest.mark.parametrize("prompts", [[[]], [[1], []]])
def test_an_empty_prompt_is_refused(model, prompts):
    with pytest.raises(ValueError, match="prompt"):
        generate(model, prompts, max_new_tokens=2, end_ids={0})


def test_no_prompts_give_no_rows(model):
    assert generate(model, [], max_new_tokens=2, end_ids={0}) == []


def test_the_same_seed_gives_the_same_text(model):
    def draw(seed):
        return generate(model, PROMPTS, max_new_tokens=12, end_ids={NO_EOS}, temperature=1.0, seed=seed)

    torch.manual_seed(1)
    first = draw(0)
    torch.manual_seed(2)  # the global state of the generator has no say
    assert draw(0) == first
    assert draw(1) != first


def test_sampling_leaves_the_global_generator_alone(model):
    state = torch.get_rng_state()
    generate(model, PROMPTS, max_new_tokens=3, end_ids={NO_EOS}, temperature=1.0, seed=5)
    assert torch.equal(torch.get_rng_state(), state)


CHI_SQUARE_999_DF5 = 20.5


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_samples_follow_the_softmax(temperature):
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -0.5, -1.0])
    n = 20_000
    tokens = sample(logits.expand(n, 6), temperature, torch.Generator().manual_seed(0))
    expected = n * torch.softmax(logits.double() / temperature, -1)
    observed = torch.bincount(tokens, minlength=6)
    assert ((observed - expected) ** 2 / expected).sum() < CHI_SQUARE_999_DF5
    # The test can fail: another temperature is told apart.
    wrong = n * torch.softmax(logits.double() / (temperature * 1.2), -1)
    assert ((observed - wrong) ** 2 / wrong).sum() > CHI_SQUARE_999_DF5


def test_generated_tokens_follow_the_model(model):
    n = 4000
    out = generate(model, [[1, 2, 3]] * n, max_new_tokens=1, end_ids={-1}, temperature=0.7, seed=0)
    expected = n * torch.softmax(model.logits(model(torch.tensor([[1, 2, 3]])).hidden)[0, -1].double() / 0.7, -1)
    observed = torch.bincount(torch.tensor(out).flatten(), minlength=50)
    often = expected > 5
    df = int(often.sum()) - 1
    assert df > 3
    statistic = ((observed - expected) ** 2 / expected)[often].sum()
    assert statistic < df + 4 * (2 * df) ** 0.5
    assert observed[~often].sum() < 2 * expected[~often].sum() + 10


def test_temperature_zero_is_the_argmax():
    logits = torch.randn(5, 9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sample(logits, 0.0, torch.Generator()), logits.argmax(-1))
