"""The pictures of a report: what a model's score costs, how its completions end, where it follows its teacher."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tutelage.evaluation.report import Measured
from tutelage.evaluation.sandbox.pool import Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Models = Mapping[str, Measured]
# pass@1 on HumanEval as published: parameters in millions, score in percent.
PUBLISHED = {
    "CodeParrot": (110, 3.8),  # arXiv:2202.13169, table 3
    "TinyCodeLM": (150, 6.1),  # arXiv:2410.02749
    "CodeGen-Mono": (350, 12.8),  # arXiv:2203.13474
    "StarCoder2": (3030, 31.7),  # arXiv:2402.19173
    "CodeLlama-Python": (6738, 38.4),  # arXiv:2308.12950
}
COLOURS = {
    Verdict.PASS: "#2a9d55", Verdict.FAIL: "#c8553d", Verdict.TRUNCATED: "#e9a23b", Verdict.SYNTAX: "#8d6cab",
    Verdict.CRASH: "#5b5b5b", Verdict.TLE: "#4f86c6", Verdict.MLE: "#9fbfdf", Verdict.OLE: "#c9c9c9",
}  # fmt: skip
SIZE = (6.4, 4.0)


def draw(models: Models, directory: Path) -> dict[str, Path]:
    """Draws, as PNG in `directory`, each picture for which the models have what it takes; returns them by name."""
    from matplotlib.figure import Figure

    directory.mkdir(parents=True, exist_ok=True)
    drawn = {}
    for name, picture in PICTURES.items():
        figure = Figure(figsize=SIZE, layout="constrained")
        if picture(figure.subplots(), models):
            drawn[name] = directory / f"{name}.png"
            figure.savefig(drawn[name], dpi=150)
    return drawn


def latency_score(axes: "Axes", models: Models) -> bool:
    """Time per token against score, and the models that no other beats in both."""
    return _score_against(axes, models, "latency/token_ms_p50", 1.0, "time per token, batch 1 (ms)", front=True)


def size_score(axes: "Axes", models: Models) -> bool:
    """Parameters against score, beside published models."""
    points = _score_against(axes, models, "size/parameters", 1e-6, "parameters (millions)")
    if points and _benchmark(models) == "humaneval":
        for name, (size, score) in PUBLISHED.items():
            axes.plot(size, score, "o", color="#b0b0b0", markersize=4, zorder=1)
            beside, side = (-5, "right") if size > 5e3 else (5, "left")  # the largest has no room on its right
            axes.annotate(
                name, (size, score), (beside, -10), textcoords="offset points", ha=side, color="#8a8a8a", fontsize=7
            )
    return points


def verdicts(axes: "Axes", models: Models) -> bool:
    """How the completions of each model ended, stacked."""
    if not (which := _benchmark(models)):
        return False
    counted = {name: model.scores[which].verdicts for name, model in models.items() if which in model.scores}
    left = np.zeros(len(counted))
    for verdict, colour in COLOURS.items():
        shares = np.array([100 * told.get(verdict, 0) / sum(told.values()) for told in counted.values()])
        if shares.any():
            axes.barh(list(counted), shares, left=left, color=colour, label=verdict)
            left += shares
    axes.set_xlabel(f"completions of {which} (%)")
    axes.set_xlim(0, 100)
    axes.invert_yaxis()
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=5, frameon=False, fontsize=8)
    return True


def calibration(axes: "Axes", models: Models) -> bool:
    """How often the likeliest token is right, by the probability it is given."""
    depths = {name: model.details["fidelity"] for name, model in models.items() if "fidelity" in model.details}
    lines = {name: depth["student"]["bins"] for name, depth in depths.items()}
    if not depths:
        return False
    lines["teacher"] = next(iter(depths.values()))["teacher"]["bins"]
    for name, bins in lines.items():
        told = [(one["confidence"], one["accuracy"]) for one in bins if one["count"]]
        axes.plot(*zip(*told, strict=True), "o-", label=name, markersize=4)
    axes.plot([0, 1], [0, 1], color="#b0b0b0", linestyle=":")
    axes.set_xlabel("probability of the likeliest token")
    axes.set_ylabel("share that is the true token")
    axes.legend(frameon=False)
    return True


def agreement(axes: "Axes", models: Models) -> bool:
    """Top-1 agreement with the teacher by class of the token."""
    depths = {name: model.details["fidelity"] for name, model in models.items() if "fidelity" in model.details}
    if not depths:
        return False
    for number, (name, depth) in enumerate(depths.items()):
        classes = [one for one in depth["token_classes"] if one["count"]]
        where = np.arange(len(classes)) + 0.8 * (number + 0.5) / len(depths)
        axes.bar(where, [100 * one["agreement"] for one in classes], 0.8 / len(depths), label=name)
        axes.set_xticks(np.arange(len(classes)) + 0.4, [f"{one['name']}\n{one['share']:.0%}" for one in classes])
    axes.set_ylabel("agreement with the teacher (%)")
    axes.legend(frameon=False)
    return True


PICTURES: dict[str, Callable[["Axes", Models], bool]] = {
    "latency-score": latency_score, "size-score": size_score, "verdicts": verdicts, "calibration": calibration,
    "agreement": agreement,
}  # fmt: skip


def _benchmark(models: Models) -> str:
    """The first problem set that any model was asked."""
    return next((which for model in models.values() for which in model.scores), "")


def _score_against(axes: "Axes", models: Models, cost: str, unit: float, title: str, front: bool = False) -> bool:
    """A point with its interval per model, cost to the right; whether there is any."""
    from matplotlib.ticker import LogLocator, NullFormatter

    score = f"{_benchmark(models)}/pass@1"
    points = []
    for name, model in models.items():
        if score in model.metrics and cost in model.metrics:
            x, y = unit * model.metrics[cost], 100 * model.metrics[score]
            low, high = model.intervals[score]
            axes.errorbar(x, y, [[y - 100 * low], [100 * high - y]], fmt="o", capsize=3, zorder=3)
            points.append((x, y, name))
    for x, y, name in points:
        side = ((7, 5), "left") if x < max(points)[0] or len(points) == 1 else ((-7, 5), "right")
        axes.annotate(name, (x, y), side[0], textcoords="offset points", ha=side[1], fontsize=8)
    if front and points:
        best = [
            (x, y) for x, y, _ in sorted(points) if all(b < y or (b == y and a >= x) for a, b, _ in points if a <= x)
        ]
        axes.step(*zip(*best, strict=True), where="post", color="#b0b0b0", linestyle="--", zorder=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.xaxis.set_major_formatter("{x:g}")  # not 3 × 10¹
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel(title)
    axes.set_ylabel(f"{_benchmark(models)} pass@1 (%)")
    axes.margins(x=0.25)
    return bool(points)
