"""What is wrong with a model folder, told by its small files, before anything heavy is touched.

Nothing in a folder is ever executed.
"""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from tutelage.errors import UserError

ADAPTER, CONFIG = "adapter_config.json", "config.json"


class Needs(NamedTuple):
    """What transformers takes to read weights that are packed in some way."""

    modules: dict[str, str]  # to import, and how each is installed
    gpu: bool = False


OPTIMUM = {"optimum": "pip install optimum"}
GPTQMODEL = {"gptqmodel": "pip install gptqmodel"}
METHODS: dict[str, Needs] = {
    "aqlm": Needs({"aqlm": "pip install 'aqlm[cpu,gpu]'"}),
    "auto-round": Needs({"auto_round": "pip install auto-round"}),
    "awq": Needs(GPTQMODEL),
    "bitnet": Needs({}),
    "bitsandbytes": Needs({"bitsandbytes": "pip install -e '.[quant]'"}),
    "compressed-tensors": Needs({"compressed_tensors": "pip install compressed-tensors"}),
    "eetq": Needs({"kernels": "pip install kernels"}, gpu=True),
    "fbgemm_fp8": Needs({"fbgemm_gpu": "pip install fbgemm-gpu"}, gpu=True),
    "fp8": Needs({}),
    "gptq": Needs(OPTIMUM | GPTQMODEL),
    "higgs": Needs({"flute": "pip install flute-kernel"}, gpu=True),
    "hqq": Needs({"hqq": "pip install hqq"}, gpu=True),
    "mxfp4": Needs({}),
    "quanto": Needs({"optimum.quanto": "pip install optimum-quanto"}),
    "quark": Needs({"quark": "pip install amd-quark"}),
    "spqr": Needs({"spqr_quant": "pip install 'spqr_quant[gpu]'"}, gpu=True),
    "torchao": Needs({"torchao": "pip install torchao"}),
    "vptq": Needs({"vptq": "pip install vptq"}, gpu=True),
}
"""By `quant_method`. What a checkpoint of another method takes, transformers says."""


def preflight(name: str, folder: Path, quantisation: str | None = None) -> None:
    """Raises UserError where the folder of a transformers model cannot be loaded, as far as its configuration tells.

    `name` is what the user called it; `quantisation` is how its weights are to be packed when they are loaded.
    """
    config = model_config(name, folder)
    _check_code(name, config)
    _check_packing(name, config, quantisation)


def model_config(name: str, folder: Path) -> dict[str, Any]:
    """The configuration of a model. Raises UserError where there is none, or the folder holds an adapter."""
    if (folder / ADAPTER).is_file():
        base = _read(name, folder / ADAPTER).get("base_model_name_or_path") or "another model"
        raise UserError(
            f"{name} is a LoRA adapter of {base}: merge it into its model first (peft's merge_and_unload) and save that"
        )
    config = _read(name, folder / CONFIG)
    if not config.keys() & {"model_type", "architectures", "format"}:
        raise UserError(f"{name}: {folder / CONFIG} does not say which kind of model this is (no model_type)")
    return config


def _read(name: str, path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{name} holds no model: there is no {path.name} in {path.parent}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{name}: {path} cannot be read ({error}): fetch it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{name}: {path} holds a {type(content).__name__}, not an object: fetch it again")
    return content


def _check_code(name: str, config: dict[str, Any]) -> None:
    """Architectures that transformers does not know bring code of their own."""
    from transformers import CONFIG_MAPPING, __version__

    kind = config.get("model_type")
    if kind is None or kind in CONFIG_MAPPING:
        return
    files = sorted({str(value).split(".")[0] for value in (config.get("auto_map") or {}).values()})
    brings = f", but to code of its own ({', '.join(files)}.py), which is never executed" if files else ""
    raise UserError(
        f"{name}: its architecture {kind} is not known to transformers {__version__}{brings}: update transformers,"
        ' choose another --teacher, or wrap it in a teacher of your own (CONTRIBUTING.md, "Adding a part")'
    )


def _check_packing(name: str, config: dict[str, Any], quantisation: str | None) -> None:
    import torch

    packing = config.get("quantization_config") or (config.get("text_config") or {}).get("quantization_config")
    if not isinstance(packing, dict):
        return
    method = str(packing.get("quant_method") or "bitsandbytes").removesuffix("_4bit").removesuffix("_8bit")
    if quantisation is not None:
        raise UserError(f"{name} is packed already, by {method}: leave out --teacher_quantization {quantisation}")
    needs = METHODS.get(method, Needs({}))
    if absent := [how for module, how in needs.modules.items() if not _installed(module)]:
        raise UserError(
            f"{name} is packed by {method}, which needs another package: {' and '.join(absent)}, or choose the"
            " unpacked model"
        )
    if needs.gpu and not torch.cuda.is_available():
        raise UserError(f"{name} is packed by {method}, which needs a GPU: choose the unpacked model")


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # of a package inside one that is absent
        return False
