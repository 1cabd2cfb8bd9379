"""Teachers from transformers: bf16, fp32, 8-bit or 4-bit, from a directory or the hub.

Shapes: B rows, T tokens, E teacher width, V vocabulary.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.data.tokenizer import Tokenizer
from tutelage.errors import UserError
from tutelage.hub import check_reachable, small_files
from tutelage.kernels.linear_divergence import DenseTeacher
from tutelage.student.cache import CausalLM
from tutelage.student.huggingface import from_huggingface
from tutelage.teacher.fingerprint import weights_fingerprint
from tutelage.teacher.load_errors import load_errors, one_line, packing_errors
from tutelage.teacher.preflight import preflight
from tutelage.teacher.probe import Probe, check_head, check_weights, count
from tutelage.teacher.rowwise import RowwiseLM, WindowedLM
from tutelage.teacher.signal import Signal, TeacherSpec
from tutelage.teacher.text_model import TextModel

QUANTISATIONS = ("nf4", "int8")


class HuggingFaceTeacher:
    """A frozen transformers causal LM. Raises UserError where `hidden @ head.T` cannot give its logits, and where
    documents cannot be kept apart."""

    provides = frozenset({"full"})

    def __init__(self, model: Any, tokenizer: Tokenizer, spec: TeacherSpec) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.spec, self.prompt_style = tokenizer, spec, "completion"
        self.text = TextModel(model, spec.vocab_size)
        self.decoder = from_huggingface(model, model.config.to_dict(), spec.vocab_size)
        self.cached = True
        """Whether transformers remembers what was generated so far."""
        if not _is_skeleton(model):
            check_weights(spec.name, model)
            self._prove()

    @property
    def head(self) -> Tensor:
        """The output matrix `(≥V, E)`."""
        return self.text.head

    @torch.no_grad()
    def signal(self, batch: Batch, taps: Sequence[int] = ()) -> Signal:
        """See `Teacher.signal`. Raises UserError for a layer to tap that is not there."""
        hidden, tapped = self.text(batch, taps)
        return Signal(DenseTeacher(hidden, self.head, self.text.bias, self.text.scale, self.text.cap), tapped)

    def shard(self, receive: Callable[[nn.Module], None], fully_shard: Callable[..., object]) -> None:
        """See `Shardable`: everything but head and embedding that it is tied to; 4 and 8 bits stay whole.

        From then on it generates through transformers, not through the Decoder that shares its weights. Raises
        UserError, in all processes, for one that runs document by document: each would gather weights at other times.
        """
        if self.spec.quantisation:
            return
        self.decoder = None
        for layer in self.text.layers:
            receive(layer)
            fully_shard(layer)
        receive(self.model)  # the rest of it
        fully_shard(self.text.module, ignored_params={*self.model.get_output_embeddings().parameters()})
        self.text = TextModel(self.model, self.spec.vocab_size)
        self.text.sharded = True
        self._prove()  # in all processes, which must agree, whatever the first one knows

    def generator(self) -> CausalLM:
        """The same weights in our decoder, whose cache keeps rows apart; else the model itself, row by row."""
        rows = RowwiseLM(self.text, self.cached)
        if self.decoder is None:
            return rows
        return self.decoder if self.decoder.context >= (self.text.context or 0) else WindowedLM(self.decoder, rows)

    @torch.no_grad()
    def _prove(self) -> None:
        probe = Probe(self.spec.name, self.model, self.text, self.tokenizer)
        probe.settle_head()
        probe.settle_documents()
        if self.decoder is not None and not probe.agrees(self.decoder):
            self.decoder = None
        self.cached = probe.remembers()


def load(
    name: str,
    source: str,
    *,
    device: str,
    dtype: torch.dtype = torch.bfloat16,
    quantisation: str | None = None,
    revision: str | None = None,
) -> HuggingFaceTeacher:
    """The causal LM at a local directory or hub id (at `revision`), on `device`, computing in `dtype`.

    `quantisation` is "nf4", "int8" or None. On "meta" only its shape is read, not its weights. Raises UserError,
    within seconds where the hub cannot be reached, for whatever goes wrong.
    """
    if quantisation not in (*QUANTISATIONS, None):
        raise UserError(f"unknown quantisation '{quantisation}': choose nf4, int8 or none")
    local = Path(source).is_dir()
    if not local:
        check_reachable(source, revision=revision)
    with load_errors(name, source, device, dtype):
        from transformers import AutoConfig

        folder = Path(source) if local else small_files(source, revision)
        commit = None if local else folder.name
        preflight(name, folder, quantisation)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        config.return_dict = True
        config._attn_implementation = None  # what the architecture has here, not what its makers had installed
        tokenizer = Tokenizer.from_directory(folder)
        tokenizer.check_spelling(name)
        with packing_errors(name, source, config):
            if device == "meta":
                model = _skeleton(name, config, dtype)
            else:
                model = _pretrained(name, source, commit, config, device, dtype, quantisation)
            shown = folder.name if local else source
            return teach(name, model, tokenizer, shown, revision=commit, quantisation=quantisation)


def teach(
    name: str,
    model: Any,
    tokenizer: Tokenizer,
    source: str,
    *,
    revision: str | None = None,
    quantisation: str | None = None,
) -> HuggingFaceTeacher:
    """A transformers model and its tokenizer as a teacher that says what it is. Raises UserError like both."""
    head = model.get_output_embeddings()
    check_head(name, head, skeleton=_is_skeleton(model))
    tokenizer = tokenizer.within(len(head.weight), name)
    text = TextModel(model, tokenizer.vocab_size)
    parts = nn.ModuleList([text.module, head])  # without eyes and ears
    spec = TeacherSpec(
        name=name,
        source=source,
        revision=revision,
        quantisation=quantisation,
        n_parameters=count(parts),
        vocab_size=tokenizer.vocab_size,
        d_model=head.weight.shape[-1],
        n_layers=len(text.layers),
        tokenizer_fingerprint=tokenizer.fingerprint,
        context=text.context,
        weights="" if _is_skeleton(model) else weights_fingerprint(model),
    )
    return HuggingFaceTeacher(model, tokenizer, spec)


def _auto_class(config: Any) -> Any:
    """What loads this kind of model: its text part teaches where it has others."""
    import transformers

    as_text = type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    seeing = type(config) in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return transformers.AutoModelForImageTextToText if seeing and not as_text else transformers.AutoModelForCausalLM


def _pretrained(
    name: str,
    source: str,
    revision: str | None,
    config: Any,
    device: str,
    dtype: torch.dtype,
    quantisation: str | None,
) -> Any:
    options: dict[str, Any] = {"config": config, "dtype": dtype, "trust_remote_code": False, "revision": revision}
    if torch.device(device).type != "cpu":
        options["device_map"] = {"": device}  # this process's own, of however many there are
    if quantisation is not None:
        options["quantization_config"] = _quantised(quantisation, dtype)
    model, loading = _auto_class(config).from_pretrained(source, output_loading_info=True, **options)
    if absent := sorted(loading["missing_keys"]):  # left alone, transformers would draw these at random
        raise UserError(f"teacher {name}: {source} lacks {len(absent)} of its weights, such as {absent[0]}")
    return model


def _skeleton(name: str, config: Any, dtype: torch.dtype) -> Any:
    """The model on the meta device: `shard` brings the weights of the process that has them."""
    if getattr(config, "quantization_config", None):
        raise UserError(f"teacher {name} is quantised, which cannot be cut up: leave out --fsdp")
    with torch.device("meta"):
        return _auto_class(config).from_config(config, dtype=dtype)


def _quantised(quantisation: str, dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    try:
        import bitsandbytes  # noqa: F401
    except Exception as error:  # where its library for this CUDA is absent it raises other kinds
        raise UserError(
            f"{quantisation} teachers need bitsandbytes ({one_line(error)}): pip install -e '.[quant]'"
        ) from error
    if quantisation == "int8":
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)  # it warns at every matmul
        return BitsAndBytesConfig(load_in_8bit=True)  # type: ignore[no-untyped-call]
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def _is_skeleton(model: nn.Module) -> bool:
    return all(parameter.is_meta for parameter in model.parameters())
