"""A report for people: `report.md` with its pictures, and the same in TensorBoard."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tutelage.evaluation.pictures import draw
from tutelage.evaluation.report import Measured, in_words, table
from tutelage.training.samples import indent

Models = Mapping[str, Measured]
# What the numbers on the page depend on most; results.json has all of it.
TOLD = (
    "samples", "temperature", "seed", "k", "prompt_style", "max_new_tokens", "oracle", "limit", "eval_rows", "data",
    "device", "precision",
)  # fmt: skip
CAPTIONS = {
    "latency-score": "Latency against score; the dashed line joins the models that none beats in both.",
    "size-score": "Size against score; grey are published figures.",
    "verdicts": "How the completions ended.",
    "calibration": "How often the likeliest token is right, by its probability; dotted: perfectly calibrated.",
    "agreement": "Agreement with the teacher by class of the token.",
}


def write_page(
    output: Path, models: Models, settings: Mapping[str, Any], compared: Sequence[Mapping[str, Any]]
) -> None:
    """Writes `report.md`, `pictures/*.png` and, a directory per model, `tensorboard/`."""
    pictures = draw(models, output / "pictures")
    text = "\n\n".join(sections(models, settings, compared, {name: f"pictures/{name}.png" for name in pictures}))
    (output / "report.md").write_text(text + "\n", encoding="utf-8")
    _to_tensorboard(output / "tensorboard", models, text, pictures)


def sections(
    models: Models, settings: Mapping[str, Any], compared: Sequence[Mapping[str, Any]], pictures: Mapping[str, str]
) -> Iterator[str]:
    """The page, part by part."""
    environment, sandbox = settings["environment"], settings.get("sandbox", {})
    yield f"# {' and '.join(models)}"
    yield grid(["", *models], table(models))
    yield from (f"**{model.details['diverged']}.**" for model in models.values() if "diverged" in model.details)
    if compared:
        yield "\n".join(f"- {in_words(one)}" for one in compared)
    for name, path in pictures.items():
        yield f"![{CAPTIONS[name]}]({path})\n\n*{CAPTIONS[name]}*"
    for which in dict.fromkeys(which for model in models.values() for which in model.scores):
        yield from _problems(which, models)
    for name, model in models.items():
        if "fidelity" in model.details:
            yield from _closeness(name, model.details["fidelity"])
    yield "## Settings"
    yield ", ".join(f"{name} {settings[name]}" for name in TOLD if settings.get(name) is not None)
    if dtypes := settings.get("dtypes"):
        yield ", ".join(f"{name} in {dtype}" for name, dtype in dtypes.items())
    if sandbox:
        yield ", ".join(f"{name}: {told}" for name, told in sandbox.items())
    yield f"{settings['date']}; " + ", ".join(f"{name} {told}" for name, told in environment.items())


def grid(head: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '∣') for cell in line)} |" for line in lines)


def _problems(which: str, models: Models) -> Iterator[str]:
    """How completions failed, and each problem that some model solved."""
    scores = {name: model.scores[which] for name, model in models.items() if which in model.scores}
    kinds = dict.fromkeys(kind for one in scores.values() for kind in one.failures)
    yield f"## {which}"
    yield "Completions that do not pass, by what went wrong:"
    yield grid(["", *scores], ([kind, *(str(one.failures.get(kind, 0)) for one in scores.values())] for kind in kinds))
    solved = [task for task in next(iter(scores.values())).passes if any(one.passes[task] for one in scores.values())]
    yield f"Passing samples of each problem that some model solves ({len(solved)}):"
    yield grid(["", *scores], ([task, *(str(one.passes[task]) for one in scores.values())] for task in solved))
    if upstream := next(iter(scores.values())).upstream:
        yield f"By the upstream oracle, for their tests build the completion's own objects: {', '.join(upstream)}."
    yield "Every completion: " + ", ".join(f"`{one.file}`" for one in scores.values()) + "."


def _closeness(name: str, depth: Mapping[str, Any]) -> Iterator[str]:
    """Where one student follows its teacher, and the pieces of text where it does so least."""
    yield f"## {name} and its teacher"
    for title, slices in (("class of the token", "token_classes"), ("position", "by_position")):
        rows = (
            [one["name"], f"{one['share']:.1%}", f"{one['agreement']:.1%}", f"{one['kl']:.3f}"]
            for one in depth[slices]
            if one["count"]
        )
        yield grid([title, "share", "agreement", "KL (nats)"], rows)
    yield "The ten pieces of held-out text where they differ most, each up to the token where they differ most:"
    for one in depth["furthest"]:
        student, teacher = (f"{g['text']!r} ({g['probability']:.0%})" for g in (one["student"], one["teacher"]))
        yield (
            f"KL {one['kl']:.2f} nats over {one['count']} tokens, {one['peak_kl']:.2f} at the last: student {student},"
            f" teacher {teacher}, text {one['target']!r}\n\n{indent(one['context'])}"
        )


def _to_tensorboard(directory: Path, models: Models, text: str, pictures: Mapping[str, Path]) -> None:
    """Each model's numbers under its own name, so that charts lay them over each other; page and pictures once."""
    import numpy as np
    from PIL import Image
    from torch.utils.tensorboard import SummaryWriter

    for name, model in models.items():
        with SummaryWriter(str(directory / name.replace("/", "_").replace(":", "-"))) as writer:
            for metric, value in model.metrics.items():
                writer.add_scalar(metric, value)
    with SummaryWriter(str(directory / "report")) as writer:
        writer.add_text("report", text)
        for name, path in pictures.items():
            writer.add_image(name, np.asarray(Image.open(path).convert("RGB")), dataformats="HWC")
