"""Teachers from transformers: bf16, fp32 or 4-bit, from a directory or the hub.

Shapes: B rows, T tokens, E teacher width, V vocabulary.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.data.tokenizer import Tokenizer
from tutelage.errors import UserError
from tutelage.hub import check_reachable
from tutelage.kernels.attention import documents
from tutelage.kernels.linear_divergence import DenseTeacher
from tutelage.kernels.reference import teacher_logits
from tutelage.student.cache import CausalLM
from tutelage.student.huggingface import from_huggingface
from tutelage.teacher.fingerprint import weights_fingerprint
from tutelage.teacher.load_errors import load_errors, one_line
from tutelage.teacher.rowwise import RowwiseLM
from tutelage.teacher.signal import Signal, TeacherSpec


class HuggingFaceTeacher:
    """A frozen transformers causal LM. Raises UserError where `hidden @ head.T` cannot give its logits."""

    provides = frozenset({"full"})

    def __init__(self, model: Any, tokenizer: Tokenizer, spec: TeacherSpec, prompt_style: str = "completion") -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.spec, self.prompt_style = tokenizer, spec, prompt_style
        self.decoder = from_huggingface(model, model.config.to_dict())
        self.scale, self.cap = _scale_and_cap(model.config)
        _check_vocabulary(self)
        if not _is_skeleton(model):
            _check_logits(self)

    @property
    def head(self) -> Tensor:
        """The output matrix `(≥V, E)`."""
        weight: Tensor = self.model.get_output_embeddings().weight
        return weight

    @property
    def bias(self) -> Tensor | None:
        """What is added to the scores `(≥V,)`, by the few models that do."""
        return getattr(self.model.get_output_embeddings(), "bias", None)

    @torch.no_grad()
    def signal(self, batch: Batch, taps: Sequence[int] = ()) -> Signal:
        """See `Teacher.signal`."""
        dtype = self.head.dtype
        hidden_by = torch.zeros((), dtype=dtype, device=batch.tokens.device)
        mask = hidden_by.masked_fill(~documents(batch.segments).mask, torch.finfo(dtype).min)  # (B, 1, T, T)
        out = self.model.base_model(
            input_ids=batch.tokens,
            attention_mask=mask,
            position_ids=batch.positions,
            use_cache=False,
            output_hidden_states=bool(taps),
        )
        tapped = tuple(out.hidden_states[layer + 1] for layer in taps)
        return Signal(DenseTeacher(out.last_hidden_state, self.head, self.bias, self.scale, self.cap), tapped)

    def shard(self, receive: Callable[[nn.Module], None], fully_shard: Callable[..., object]) -> None:
        """See `Shardable`: everything but head and embedding that it is tied to; 4 bits stay whole.

        From then on it generates through transformers, not through the Decoder that shares its weights.
        """
        if self.spec.quantisation:
            return
        self.decoder = None
        base = self.model.base_model
        for layer in _layers(base):
            receive(layer)
            fully_shard(layer)
        receive(self.model)  # the rest of it
        fully_shard(base, ignored_params={*self.model.get_output_embeddings().parameters()})

    def generator(self) -> CausalLM:
        """The same weights in our decoder, whose cache keeps rows apart; else the model itself, row by row."""
        return self.decoder or RowwiseLM(self.model, self.spec.vocab_size)


def load(
    name: str,
    source: str,
    *,
    device: str,
    dtype: torch.dtype = torch.bfloat16,
    quantisation: str | None = None,
    prompt_style: str = "completion",
) -> HuggingFaceTeacher:
    """The causal LM at a local directory or hub id, on `device`, computing in `dtype`; `quantisation` "nf4" or None.

    On "meta" only its shape is read, not its weights. Raises UserError, within seconds where the hub cannot be
    reached, for whatever goes wrong.
    """
    if quantisation not in ("nf4", None):
        raise UserError(f"unknown quantisation '{quantisation}': choose nf4 or none")
    if not Path(source).is_dir():
        check_reachable(source)
    with load_errors(name, source, device, dtype):
        from transformers import AutoTokenizer

        if device == "meta":
            model = _skeleton(name, source, dtype)
        else:
            model = _pretrained(name, source, device, dtype, quantisation)
        tokenizer = Tokenizer.from_huggingface(AutoTokenizer.from_pretrained(source, trust_remote_code=False))
        spec = TeacherSpec(
            name=name,
            source=Path(source).name if Path(source).is_dir() else source,
            revision=getattr(model.config, "_commit_hash", None),
            quantisation=quantisation,
            n_parameters=model.num_parameters(),
            vocab_size=tokenizer.vocab_size,
            d_model=model.config.hidden_size,
            n_layers=model.config.num_hidden_layers,
            tokenizer_fingerprint=tokenizer.fingerprint,
            weights="" if _is_skeleton(model) else weights_fingerprint(model),
        )
        return HuggingFaceTeacher(model, tokenizer, spec, prompt_style)


def _pretrained(name: str, source: str, device: str, dtype: torch.dtype, quantisation: str | None) -> Any:
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": "sdpa", "trust_remote_code": False}
    if torch.device(device).type != "cpu":
        options["device_map"] = {"": device}  # this process's own, of however many there are
    if quantisation == "nf4":
        options["quantization_config"] = _nf4(dtype)
    loaded: Any = AutoModelForCausalLM.from_pretrained(source, output_loading_info=True, **options)
    model, loading = loaded
    if absent := sorted(loading["missing_keys"]):  # left alone, transformers would draw these at random
        raise UserError(f"teacher {name}: {source} lacks {len(absent)} of its weights, such as {absent[0]}")
    return model


def _skeleton(name: str, source: str, dtype: torch.dtype) -> Any:
    """The model on the meta device: `shard` brings the weights of the process that has them."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    if getattr(config, "quantization_config", None):
        raise UserError(f"teacher {name}: {source} is quantised, which cannot be cut up: leave out --fsdp")
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=dtype, attn_implementation="sdpa"
        )


def _nf4(dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    try:
        import bitsandbytes  # noqa: F401
    except Exception as error:  # where its library for this CUDA is absent it raises other kinds
        raise UserError(f"4-bit teachers need bitsandbytes ({one_line(error)}): pip install -e '.[quant]'") from error
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def _layers(base: nn.Module) -> list[nn.Module]:
    """The longest list of modules that is not inside another (experts are lists inside layers)."""
    lists = {name: module for name, module in base.named_modules() if isinstance(module, nn.ModuleList)}
    outer = [lists[name] for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    return [*max(outer, key=lambda layers: len(layers), default=nn.ModuleList())]


def _is_skeleton(model: nn.Module) -> bool:
    return all(parameter.is_meta for parameter in model.parameters())


def _scale_and_cap(config: Any) -> tuple[float, float | None]:
    """Cohere multiplies its logits, Granite divides them, Gemma-2 caps them."""
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    return scale, getattr(config, "final_logit_softcapping", None)


def _check_vocabulary(teacher: HuggingFaceTeacher) -> None:
    if len(teacher.head) < teacher.tokenizer.vocab_size:
        raise UserError(
            f"teacher {teacher.spec.name}: its head scores {len(teacher.head)} tokens, its tokenizer knows"
            f" {teacher.tokenizer.vocab_size}: the two do not belong together"
        )


@torch.no_grad()
def _check_logits(teacher: HuggingFaceTeacher) -> None:
    """Compares the model's own logits with ours on 16 tokens, so that a head of another kind is refused at load."""
    name, model = teacher.spec.name, teacher.model
    if teacher.head.is_meta:
        raise UserError(f"teacher {name}: its head was offloaded; use a smaller teacher or a device that holds it")
    tokens = torch.arange(16, device=teacher.head.device)[None] % teacher.tokenizer.vocab_size
    theirs = model(input_ids=tokens, use_cache=False).logits.float()
    hidden = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
    ours = teacher_logits(hidden, teacher.head, teacher.bias, teacher.scale, teacher.cap).float()
    gap = (ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-6)
    if not gap < 0.02:
        raise UserError(
            f"teacher {name}: hidden @ head.T differs from its logits by {gap:.1%} of their range, so its head does"
            ' something unknown: wrap it in a teacher of your own (CONTRIBUTING.md, "Adding a part")'
        )
