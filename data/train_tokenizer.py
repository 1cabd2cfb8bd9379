"""The command that trains a vocabulary: `python -m tutelage.data.tokenizer train`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jsonargparse.typing import PositiveInt

from tutelage import cli
from tutelage.errors import UserError

COMMAND = "python -m tutelage.data.tokenizer train"


@dataclass(frozen=True)
class TrainConfig:
    """What the new vocabulary learns from."""

    output_dir: str = "runs/tokenizer"
    """Directory for tokenizer.json and tokenizer_config.json."""

    data: str = "stdlib"
    """Sources of text, as for training: stdlib, site-packages, mbpp, hub:ORG/NAME, files or directories."""

    vocab_size: PositiveInt = 8192
    """Number of tokens, the 256 bytes and the end-of-text token included."""

    max_documents: PositiveInt | None = None
    """Read at most this many documents from each source."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code (2 for bad input)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return cli.run(lambda: _run(arguments))


def _run(arguments: list[str]) -> None:
    if not arguments or arguments[0] not in ("train", "-h", "--help"):
        raise UserError(f"expected 'train', got '{' '.join(arguments)}': {COMMAND} --data stdlib --output_dir DIR")
    options = arguments[1:] if arguments[0] == "train" else arguments
    config = cli.parse(TrainConfig, options, prog=COMMAND, description="Train a byte-level BPE vocabulary.")
    _train(config)


def _train(config: TrainConfig) -> None:
    from tutelage.data.config import PackingConfig
    from tutelage.data.sources import parse_sources, read
    from tutelage.data.tokenizer import train

    packing = PackingConfig(max_documents=config.max_documents)
    sources = parse_sources(config.data)
    documents = (document.text for source in sources for document in read(source.name, packing))
    tokenizer = train(documents, config.vocab_size)
    tokenizer.save(Path(config.output_dir))
    fingerprint = tokenizer.fingerprint[:12]
    print(f"wrote {tokenizer.vocab_size} tokens to {config.output_dir} (fingerprint {fingerprint})")
