"""Models to start from, wherever they are, and everything that is wrong with others."""

import json
import shutil
import socket

import pytest
import torch
from safetensors.torch import load_file, save_file

from tutelage.errors import UserError
from tutelage.store import publish
from tutelage.student.config import StudentConfig
from tutelage.student.decoder import Decoder
from tutelage.student.source import read_shape, read_source
from tutelage.student.weights import save_student

QWEN = {
    "vocab_size": 640,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": 0,
}


@pytest.fixture(scope="module")
def qwen_dir(tmp_path_factory, save_model):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(3)
    return save_model(Qwen2ForCausalLM(Qwen2Config(**QWEN)), tmp_path_factory.mktemp("qwen"))


@pytest.fixture
def folder(qwen_dir, tmp_path):
    """A copy of the Qwen2 model, to be broken."""
    return shutil.copytree(qwen_dir, tmp_path / "model")


def edit(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def change_weights(folder, change):
    file = folder / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, {"format": "pt"})


def test_a_model_of_transformers_in_our_arithmetic(qwen_dir, one_thread):
    from transformers import AutoModelForCausalLM

    shape = read_shape(str(qwen_dir))
    assert (shape.n_layers, shape.d_ff, shape.qkv_bias, shape.bias, shape.vocab_size) == (2, 96, True, False, 640)
    source = read_source(str(qwen_dir))
    assert source.model.config == StudentConfig(**{**vars(shape), "vocab_size": 600})  # 40 rows are padding
    theirs = AutoModelForCausalLM.from_pretrained(qwen_dir, dtype=torch.float32)
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        ours = source.model.logits(source.model(tokens).hidden)
        torch.testing.assert_close(ours, theirs(tokens).logits[..., :600], rtol=1e-4, atol=1e-4)


def test_the_head_is_the_one_in_the_file(folder):
    change_weights(folder, lambda weights: None)
    edit(folder / "config.json", tie_word_embeddings=True)
    assert read_shape(str(folder)).tie_embeddings  # as far as config.json knows
    assert not read_source(str(folder)).model.config.tie_embeddings


def test_runs_checkpoints_and_student_directories_of_ours(tokenizer, tmp_path):
    models = [Decoder(StudentConfig(600, n, 4, 2, 64, 128)) for n in (1, 2)]
    for step, model in enumerate(models, 1):
        with publish(tmp_path / "run" / "checkpoints" / f"step-{step}") as aside:
            save_student(model, tokenizer, aside / "student")
    run = str(tmp_path / "run")
    for name, layers in ((run, 2), (f"{run}@1", 1), (f"{run}/checkpoints/step-1", 1)):
        assert read_shape(name).n_layers == layers
        source = read_source(name).model
        assert torch.equal(source.head, models[layers - 1].head)
    with pytest.raises(UserError, match=r"--student\.init \S+@7: .*no checkpoint of step 7"):
        read_shape(f"{run}@7")
    for file in (tmp_path / "run").rglob("model.safetensors"):
        file.write_bytes(b"")
    with pytest.raises(UserError, match=r"--student\.init \S+run: no student at"):
        read_shape(run)


def gone(folder):
    shutil.rmtree(folder)


def quantised(folder):
    edit(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 128})


def adapter(folder):
    for file in folder.iterdir():
        file.unlink()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))


def truncated(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


REFUSED = [
    (gone, "there is no such directory"),
    (lambda folder: (folder / "config.json").unlink(), r"it has no config\.json"),
    (lambda folder: (folder / "config.json").write_text("{"), r"cannot be read \(OSError"),
    (lambda folder: edit(folder / "config.json", model_type="gpt2"), r"its arithmetic \(gpt2\) is not the student's"),
    (lambda folder: edit(folder / "config.json", model_type="no-such"), r"cannot be read \(ValueError.*no-such"),
    (lambda folder: edit(folder / "config.json", hidden_act="relu"), r"its arithmetic \(qwen2\).*plain activation"),
    (lambda folder: edit(folder / "config.json", num_hidden_layers="two"), r"cannot be read \("),
    (quantised, r"its weights are quantised \(gptq\), and training needs whole ones"),
    (adapter, "it is a LoRA adapter: merge it"),
]
DAMAGED = [
    (lambda folder: (folder / "model.safetensors").unlink(), r"cannot be read \(OSError.*model\.safetensors"),
    (truncated, r"cannot be read \(SafetensorError"),
    (lambda folder: edit(folder / "config.json", hidden_size=128), r"cannot be read \(RuntimeError"),
    (lambda folder: edit(folder / "config.json", vocab_size=700), r"cannot be read \(RuntimeError"),
    (lambda folder: [file.unlink() for file in folder.glob("tokenizer*")], "no tokenizer in"),
    (lambda folder: (folder / "tokenizer.json").write_text("{"), r"tokenizer\.json is not a tokenizer"),
    (
        lambda folder: change_weights(folder, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight")),
        r"1 of its weights are missing, such as model\.layers\.1\.mlp\.up_proj\.weight",
    ),
    (
        lambda folder: change_weights(folder, lambda weights: weights["model.norm.weight"].fill_(float("nan"))),
        r"norm\.weight holds NaN or infinity",
    ),
]


@pytest.mark.parametrize(("harm", "line"), REFUSED)
def test_what_cannot_be_started_from_is_refused_by_its_shape(folder, harm, line):
    harm(folder)
    for read in (read_shape, read_source):
        with pytest.raises(UserError, match=rf"--student\.init {folder}:? .*{line}") as error:
            read(str(folder))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(("harm", "line"), DAMAGED)
def test_a_damaged_model_is_refused(folder, harm, line):
    harm(folder)
    with pytest.raises(UserError, match=rf"--student\.init {folder}:? .*{line}") as error:
        read_source(str(folder))
    assert "\n" not in str(error.value)


def test_a_student_that_diverged_is_refused(tokenizer, tmp_path):
    model = Decoder(StudentConfig(600, 1, 4, 2, 64, 128))
    model.layers[0].mlp.up_proj.weight.data[0, 0] = float("inf")
    save_student(model, tokenizer, tmp_path)
    with pytest.raises(UserError, match=r"layers\.0\.mlp\.up_proj\.weight holds NaN or infinity"):
        read_source(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("layer", r"unknown value 'layer': did you mean 'layers'\?"),
        (
            "qwen",
            r"unknown value 'qwen': choose one of .*, random \(or a run, a model's directory, or ORG/NAME",
        ),
        ("./no/such", "there is no such directory"),
        ("/no/such", "there is no such directory"),
        ("a/b/c@main", "there is no such directory"),
        ("{file}", "it is a file: name the directory"),
    ],
)
def test_names_that_mean_nothing(name, line, tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    name = name.format(file=tmp_path / "x.gguf")
    with pytest.raises(UserError, match=rf"^--student\.init {name}: {line}"):
        read_shape(name)


def test_the_hub_is_asked_for_config_json_alone(monkeypatch, qwen_dir):
    """And for the revision that is named."""
    import transformers

    from tutelage.student import source

    asked = []

    class Stand:
        @staticmethod
        def from_pretrained(path, **options):
            asked.append((path, options["revision"]))
            return config

    config = transformers.AutoConfig.from_pretrained(qwen_dir)
    monkeypatch.setattr(transformers, "AutoConfig", Stand)
    monkeypatch.setattr(source, "check_reachable", lambda name, revision: asked.append(name))
    assert read_shape("some-org/some-model") == read_shape("some-org/some-model@v1.5") == read_shape(str(qwen_dir))
    hub = "some-org/some-model"
    assert asked == [hub, (hub, None), hub, (hub, "v1.5"), (str(qwen_dir), None)]


def test_a_hub_out_of_reach_is_said_with_the_way_out(monkeypatch):
    import huggingface_hub.constants

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        line = r"--student\.init models/typo: cannot reach model 'models/typo' on the hub.*: name a directory or a run$"
        with pytest.raises(UserError, match=line):
            read_shape("models/typo")
