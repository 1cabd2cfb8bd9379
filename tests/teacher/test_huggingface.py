"""Teachers from transformers checkpoints."""

import json
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.teacher.conftest import copy_of
from tutelage.data.batch import Batch
from tutelage.data.tokenizer import Tokenizer
from tutelage.errors import UserError
from tutelage.kernels.reference import teacher_logits
from tutelage.student.decoder import Decoder
from tutelage.student.huggingface import config_from_huggingface
from tutelage.teacher import huggingface
from tutelage.teacher.registry import entry, load_teacher
from tutelage.teacher.rowwise import RowwiseLM
from tutelage.teacher.signal import Shardable, decoder_of


@pytest.fixture(params=["llama_dir", "starcoder_dir", "qwen_dir", "olmo_dir"])
def checkpoint(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


def plain(checkpoint: Path) -> Any:
    """The checkpoint as transformers alone loads it."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16).eval()


@torch.no_grad()
def test_the_signal_gives_the_models_own_logits_for_each_document_alone(checkpoint: Path, batch: Batch) -> None:
    model = plain(checkpoint).float()
    teacher = load_teacher(str(checkpoint))
    teacher.model.float()  # type: ignore[attr-defined]  # the head follows: the specification in fp32
    signal = teacher.signal(batch)
    logits = teacher_logits(*signal.dense)
    assert logits.std() > 0.3
    for row in range(len(batch.tokens)):
        for segment in batch.segments[row].unique():
            here = batch.segments[row] == segment
            alone = model(input_ids=batch.tokens[row, here][None]).logits[0]
            torch.testing.assert_close(logits[row, here], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["llama_dir", "starcoder_dir", "qwen_dir"])
@torch.no_grad()
def test_the_generator_gives_the_models_own_logits(name: str, request: pytest.FixtureRequest) -> None:
    checkpoint = request.getfixturevalue(name)
    teacher = load_teacher(str(checkpoint))
    teacher.model.float()  # type: ignore[attr-defined]
    tokens = torch.arange(20)[None]
    expected = plain(checkpoint).float()(input_ids=tokens).logits
    generator = teacher.generator()
    assert generator is teacher.decoder
    cache = generator.new_cache(1, 32)
    pieces = [generator.step(part, cache) for part in tokens.split([12, 1, 7], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, 1), expected, rtol=1e-4, atol=1e-4)


def test_the_spec_says_what_it_is(checkpoint: Path, tokenizer: Tokenizer) -> None:
    teacher = load_teacher(str(checkpoint))
    spec = teacher.spec
    assert spec.n_parameters == sum(p.numel() for p in plain(checkpoint).parameters())
    assert (spec.source, spec.vocab_size, spec.d_model, spec.n_layers) == (checkpoint.name, 600, 64, 2)
    assert (spec.quantisation, spec.revision, spec.tokenizer_fingerprint) == (None, None, tokenizer.fingerprint)
    assert spec.context == 256
    assert teacher.provides == {"full"}
    assert not any(p.requires_grad for p in teacher.model.parameters())  # type: ignore[attr-defined]


def test_in_fp32_the_logits_are_exact(llama_dir: Path, batch: Batch) -> None:
    from transformers import AutoModelForCausalLM

    teacher = load_teacher(str(llama_dir), dtype=torch.float32)
    signal = teacher.signal(batch)
    assert {signal.dense.hidden.dtype, signal.dense.head.dtype} == {torch.float32}
    model = AutoModelForCausalLM.from_pretrained(llama_dir, dtype=torch.float32)
    here = batch.segments[0] == 0
    with torch.no_grad():
        alone = model(input_ids=batch.tokens[0, here][None]).logits[0]
    logits = teacher_logits(signal.dense.hidden, signal.dense.head)[0, here]
    torch.testing.assert_close(logits, alone, rtol=1e-4, atol=1e-4)


def test_taps_are_the_residual_stream_after_each_layer(llama_dir: Path, batch: Batch) -> None:
    teacher = load_teacher(str(llama_dir), dtype=torch.float32)
    signal = teacher.signal(batch, taps=(1, 0, -1))
    decoder: Any = decoder_of(teacher)
    ours = decoder(batch.tokens, positions=batch.positions, segments=batch.segments, taps=(1, 0, 1))
    assert len(signal.taps) == 3
    for theirs, expected in zip(signal.taps, ours.taps, strict=True):
        torch.testing.assert_close(theirs, expected, rtol=1e-4, atol=1e-4)


def test_it_offers_layers_and_then_their_root_to_be_cut_up_and_generates_through_them(llama_dir: Path) -> None:
    teacher: Any = load_teacher(str(llama_dir))
    received: list[Any] = []
    cut: list[tuple[Any, Any]] = []
    assert isinstance(teacher, Shardable)
    teacher.shard(received.append, lambda module, ignored_params=None: cut.append((module, ignored_params)))
    base = teacher.model.model
    assert received == [*base.layers, teacher.model]
    assert cut == [*((layer, None) for layer in base.layers), (base, {teacher.head})]
    assert isinstance(teacher.generator(), RowwiseLM)


@pytest.mark.parametrize("kind", ["llama_dir", "teacher_dir"])
def test_its_shape_alone_is_read_without_its_weights(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder = request.getfixturevalue(kind)
    whole: Any = load_teacher(str(folder), dtype=torch.float32)
    moved = tmp_path / folder.name
    shutil.copytree(folder, moved, ignore=shutil.ignore_patterns("*.safetensors"))
    shape: Any = load_teacher(str(moved), "meta", torch.float32)
    assert replace(shape.spec, name="") == replace(whole.spec, name="", weights="")
    models = [getattr(teacher, "model", None) or teacher.decoder for teacher in (whole, shape)]
    assert all(parameter.is_meta for parameter in models[1].parameters())
    names = [{name: (t.shape, t.dtype) for name, t in model.state_dict().items()} for model in models]
    assert names[0] == names[1]


def test_a_quantised_checkpoint_is_not_cut_up(llama_dir: Path, tmp_path: Path) -> None:
    copy_of(llama_dir, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="is quantised, which cannot be cut up: leave out --fsdp"):
        load_teacher(str(tmp_path), "meta")


def test_four_bit_loads_on_a_cpu_and_says_so(llama_dir: Path, batch: Batch) -> None:
    pytest.importorskip("bitsandbytes")
    teacher = huggingface.load("small", str(llama_dir), device="cpu", quantisation="nf4")
    assert teacher.spec.quantisation == "nf4"
    assert teacher.spec.n_parameters == sum(p.numel() for p in plain(llama_dir).parameters())
    kinds = {type(module).__name__ for module in teacher.model.modules()}
    assert "Linear4bit" in kinds
    signal, exact = teacher.signal(batch), load_teacher(str(llama_dir)).signal(batch)
    gap = (signal.dense.hidden - exact.dense.hidden).float().norm() / exact.dense.hidden.float().norm()
    assert 0.01 < gap < 0.6  # rounded to four bits: visible, and still the same model
    cache = teacher.generator().new_cache(1, 8)
    assert torch.isfinite(teacher.generator().step(torch.tensor([[1, 2, 3]]), cache)).all()


def test_eight_bits_load_on_a_cpu_and_say_so(llama_dir: Path, batch: Batch, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("bitsandbytes")
    teacher = huggingface.load("small", str(llama_dir), device="cpu", quantisation="int8")
    assert teacher.spec.quantisation == "int8"
    assert teacher.spec.n_parameters == plain(llama_dir).num_parameters()
    assert "Linear8bitLt" in {type(module).__name__ for module in teacher.model.modules()}
    signal, exact = teacher.signal(batch), load_teacher(str(llama_dir)).signal(batch)
    gap = (signal.dense.hidden - exact.dense.hidden).float().norm() / exact.dense.hidden.float().norm()
    assert 0.001 < gap < 0.1
    assert not [record for record in caplog.records if record.name.startswith("bitsandbytes")]


def test_an_unknown_quantisation_is_refused(llama_dir: Path) -> None:
    with pytest.raises(UserError, match=r"int3.*nf4, int8"):
        huggingface.load("small", str(llama_dir), device="cpu", quantisation="int3")


def test_the_real_starcoder_has_our_names_shapes_and_count() -> None:
    from transformers import Starcoder2Config, Starcoder2ForCausalLM

    config = Starcoder2Config(
        hidden_size=3072,
        num_hidden_layers=30,
        num_attention_heads=24,
        num_key_value_heads=2,
        intermediate_size=12288,
        vocab_size=49152,
        max_position_embeddings=16384,
        use_bias=True,
        rope_theta=999999.4420358813,
        tie_word_embeddings=True,
        norm_epsilon=1e-5,
        sliding_window=4096,
    )
    shape = config_from_huggingface(config.to_dict())
    assert shape is not None
    with torch.device("meta"):
        theirs, ours = Starcoder2ForCausalLM(config), Decoder(shape)
    known = entry("starcoder2-3b")
    assert theirs.num_parameters() == shape.n_parameters == known.n_parameters == 3_030_371_328
    assert (known.d_model, known.vocab_size) == (3072, 49152)
    assert shape.rope_theta == pytest.approx(999999.4420358813)
    names = {name.removeprefix("model."): p.shape for name, p in theirs.named_parameters()}
    assert names == {name: p.shape for name, p in ours.named_parameters()}


def test_the_real_codellama_has_the_registrys_count() -> None:
    from transformers import LlamaConfig

    config = LlamaConfig(vocab_size=32_000, max_position_embeddings=16384, rope_theta=1e6, tie_word_embeddings=False)
    shape = config_from_huggingface(config.to_dict())
    assert shape is not None
    assert shape.n_parameters == entry("codellama-7b").n_parameters


@pytest.mark.parametrize("change", [lambda x: x * 1.5, lambda x: 2 * torch.tanh(x / 2), lambda x: x + 1])
def test_a_head_that_does_something_unknown_is_refused(
    llama_dir: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    from transformers import LlamaForCausalLM

    forward = LlamaForCausalLM.forward

    def changed(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = forward(self, *args, **kwargs)
        out.logits = change(out.logits)
        return out

    monkeypatch.setattr(LlamaForCausalLM, "forward", changed)
    with pytest.raises(UserError, match=r"hidden @ head\.T differs.*%"):
        load_teacher(str(llama_dir))


def test_known_scales_and_caps_are_carried(tmp_path: Path, save_model: Callable[..., Path], batch: Batch) -> None:
    from transformers import GraniteConfig, GraniteForCausalLM

    config = GraniteConfig(
        vocab_size=600, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=0, eos_token_id=0, logits_scaling=4.0,
    )  # fmt: skip
    torch.manual_seed(0)
    teacher = load_teacher(str(save_model(GraniteForCausalLM(config), tmp_path)))
    assert teacher.signal(batch).dense.scale == 0.25


def test_what_the_makers_had_installed_does_not_matter(llama_dir: Path, tmp_path: Path) -> None:
    folder = copy_of(llama_dir, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    more = {"attn_implementation": "flash_attention_2", "_attn_implementation": "flash_attention_2"}
    (folder / "config.json").write_text(json.dumps({**config, **more, "return_dict": False, "use_cache": False}))
    teacher: Any = load_teacher(str(folder))
    assert teacher.model.config._attn_implementation == "sdpa"


def test_a_weight_that_is_no_number_is_named(llama_dir: Path, tmp_path: Path) -> None:
    file = copy_of(llama_dir, tmp_path) / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.self_attn.q_proj.weight"][3, 3] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"its weight model\.layers\.1\.self_attn\.q_proj\.weight holds NaN"):
        load_teacher(str(tmp_path))


def test_small_files_come_first_and_say_which_commit_they_are_of(
    llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    import transformers

    commit = tmp_path / "snapshots" / ("c0ffee" * 7)[:40]
    shutil.copytree(llama_dir, commit)
    asked = {}

    def snapshot_download(source: str, **options: Any) -> str:
        asked.update(options, source=source)
        return str(commit)

    auto = transformers.AutoModelForCausalLM
    real = auto.from_pretrained

    def from_pretrained(source: str, *, revision: str, **options: Any) -> Any:
        asked["weights"] = (source, revision)
        return real(commit, **options)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface, "check_reachable", lambda *_, **__: None)
    monkeypatch.setattr(auto, "from_pretrained", from_pretrained)
    teacher = huggingface.load("small", "org/small", device="cpu", revision="v1")
    assert (asked["source"], asked["revision"]) == ("org/small", "v1")
    assert not any(pattern.endswith(("safetensors", "bin")) for pattern in asked["allow_patterns"])
    assert asked["weights"] == ("org/small", commit.name)
    assert (teacher.spec.source, teacher.spec.revision) == ("org/small", commit.name)


def test_one_that_runs_by_document_is_not_cut_up(tmp_path: Path, save_model: Callable[..., Path]) -> None:
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        vocab_size=600, hidden_size=64, num_hidden_layers=2, ffn_dim=128, num_attention_heads=4,
        max_position_embeddings=64, word_embed_proj_dim=64, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    teacher: Any = load_teacher(str(save_model(OPTForCausalLM(config), tmp_path)), dtype=torch.float32)
    with pytest.raises(UserError, match=r"document by document.*leave out --fsdp"):
        teacher.shard(lambda module: None, lambda module, ignored_params=None: None)


def test_a_head_smaller_than_the_tokenizer_is_refused(tmp_path: Path, save_model: Callable[..., Path]) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=500, hidden_size=64, intermediate_size=64, num_hidden_layers=1,
                         num_attention_heads=2, max_position_embeddings=64)  # fmt: skip
    folder = save_model(LlamaForCausalLM(config), tmp_path)
    with pytest.raises(UserError, match=r"500.*600"):
        load_teacher(str(folder))


def test_a_truncated_weight_file_is_a_user_error(llama_dir: Path, tmp_path: Path) -> None:
    weights = copy_of(llama_dir, tmp_path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be loaded"):
        load_teacher(str(tmp_path))


def test_a_checkpoint_without_some_weights_is_refused(llama_dir: Path, tmp_path: Path) -> None:
    """Left alone, transformers would draw them at random and warn."""
    weights = copy_of(llama_dir, tmp_path) / "model.safetensors"
    tensors = load_file(weights)
    gone = "model.layers.1.mlp.up_proj.weight"
    del tensors[gone]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(UserError, match="up_proj"):
        load_teacher(str(tmp_path))


def test_a_directory_of_another_kind_of_model_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no-such-arithmetic"}))
    with pytest.raises(UserError, match=r"no-such-arithmetic is not known"):
        load_teacher(str(tmp_path))


@pytest.mark.parametrize("answers", [False, True], ids=["refused", "silent"])
def test_a_hub_out_of_reach_is_said_within_seconds(monkeypatch: pytest.MonkeyPatch, answers: bool) -> None:
    """Once nobody listens, once somebody accepts and never answers."""
    import huggingface_hub.constants

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if answers:
            server.listen()
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        start = time.perf_counter()
        with pytest.raises(UserError, match=r"some-org/some-model.*smollm2-135m.*local directory"):
            load_teacher("some-org/some-model")
        assert time.perf_counter() - start < 10
