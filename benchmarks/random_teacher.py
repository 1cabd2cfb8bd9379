"""A teacher of a real one's shape with random weights, for machines that cannot fetch it: what it costs is the same.

    python -m benchmarks.random_teacher --shape smollm2-135m --output DIR    # then train.py --teacher DIR

Its vocabulary is trained on the standard library. What it teaches is noise: never judge a student by it.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.timing import Output, publish
from tutelage.data.config import PackingConfig
from tutelage.data.sources import parse_sources, read
from tutelage.data.tokenizer import Tokenizer, train
from tutelage.student.config import PRESETS, StudentConfig
from tutelage.student.decoder import Decoder
from tutelage.student.weights import save_student
from tutelage.teacher.decoder_teacher import DecoderTeacher, decoder_spec
from tutelage.teacher.embedded import directory
from tutelage.teacher.registry import EMBEDDED

_SMOLLM2 = {**PRESETS["smollm2-6l"], "n_layers": 30}
SHAPES = {
    "smollm2-135m": StudentConfig(vocab_size=49_152, **_SMOLLM2),  # type: ignore[arg-type]
    "starcoder2-3b": StudentConfig(
        vocab_size=49_152,
        n_layers=30,
        n_heads=24,
        n_kv_heads=2,
        d_model=3072,
        d_ff=12_288,
        max_seq_len=16_384,
        norm="layernorm",
        mlp="gelu",
        bias=True,
        qkv_bias=True,
        rope_theta=999_999.4420358813,
    ),
    "nano": StudentConfig(vocab_size=600, **PRESETS["nano"]),  # type: ignore[arg-type]
}

SPREAD = 2.5
"""Standard deviation of its logits, in nats: one that prefers nothing would be too easily learnt."""


def random_decoder(shape: StudentConfig, device: str) -> Decoder:
    """A frozen decoder in bf16, drawn where it will stay: in fp32 first, it might not fit."""
    torch.manual_seed(0)
    with torch.device("meta"):
        decoder = Decoder(shape).bfloat16()
    decoder = decoder.to_empty(device=device)
    for module in decoder.modules():
        if hasattr(module, "reset_parameters") and module is not decoder.embed_tokens:
            module.reset_parameters()  # norms start at one
    decoder.initialise()
    torch.nn.init.normal_(decoder.embed_tokens.weight, std=SPREAD / shape.d_model**0.5)
    return decoder.eval().requires_grad_(False)


def random_teacher(name: str, tokenizer: Tokenizer, device: str) -> DecoderTeacher:
    """A teacher of this shape that shares the tokenizer, whose ids must all be in the shape's vocabulary."""
    shape = replace(SHAPES[name], vocab_size=tokenizer.vocab_size)
    decoder = random_decoder(shape, device)
    return DecoderTeacher(
        decoder, tokenizer, decoder_spec(f"random weights of {name}'s shape", "random", decoder, tokenizer)
    )


def main(argv: Sequence[str]) -> int:
    """Writes the teacher as a directory."""
    parser = argparse.ArgumentParser("benchmarks.random_teacher", description=__doc__)
    parser.add_argument("--shape", choices=list(SHAPES), default="smollm2-135m")
    parser.add_argument("--data", default="stdlib", help="text that the vocabulary is trained on")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--unless_embedded", action="store_true", help="make none where the embedded teacher is here")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    found = embedded() if options.unless_embedded else None
    found = found or make(options.shape, options.data, options.output)
    if publish("random_teacher", {"rows": [found]}, Output(json=options.json)):
        print(*found.values(), sep=", ")
    return 0


def embedded() -> dict[str, str] | None:
    """The embedded teacher, unpacked and ready; None, and the reason is logged, where it cannot be."""
    try:
        return {"teacher": EMBEDDED, "what": "embedded", "where": directory().name}
    except Exception as error:  # whatever it lacks, another teacher will do
        logging.warning("no embedded teacher: %s", error)
        return None


def make(shape: str, data: str, output: Path) -> dict[str, str]:
    """Writes a directory."""
    sources = parse_sources(data)
    texts = (document.text for source in sources for document in read(source.name, PackingConfig()))
    tokenizer = train(texts, SHAPES[shape].vocab_size)
    teacher = random_teacher(shape, tokenizer, "cpu")
    save_student(teacher.decoder, tokenizer, output)
    size = f"{teacher.spec.n_parameters:,} parameters, {tokenizer.vocab_size:,} ids"
    return {"teacher": str(output), "what": teacher.spec.name, "size": size}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
