"""What a search leaves behind: the recipe of its network, the front, and a picture with the published networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vigcli.config.load import dump
from vigcli.config.recipe import Recipe
from vigcli.errors import UnavailableError
from vigcli.files import replacing, write_json, write_text
from vigcli.search.job import SearchResult
from vigcli.search.score import load_score


def save(result: SearchResult, recipe: Recipe, comment: str, run: Path) -> dict[str, Any]:
    """Write `recipe.yaml` (the recipe with the network found), `front.json` and `front.png`; returns the summary."""
    best = result.best.config
    changes = {"arch": best, "resolution": best.resolution, "num_classes": best.num_classes}
    if not getattr(best, "distilled", False):
        changes["distillation"] = None  # there is no head that could learn the teacher's answer
    found = recipe.model_copy(update=changes)
    summary = {
        "budget_ms": result.budget_ms,
        "best": result.best.as_json(),
        "nearest_published": result.nearest.as_json(),
        "num_evaluated": result.num_evaluated,
        "space_size": result.space_size,
        "random_best_top1_percent": max((round(score, 2) for _, score in result.random_front), default=None),
        "beats_random": result.beats_random,
        "chosen": result.choices,
        "kept_genes": list(result.kept),
        "genes_judged_by_size": list(result.judged_by_size),
        "run": str(run),
    }
    front = [
        {"latency_ms": round(ms, 4), "top1_percent": round(score, 3), "arch": config.model_dump(mode="json")}
        for ms, score, config in result.front
    ]
    write_text(run / "recipe.yaml", f"# {comment}\n{dump(found)}")
    write_json(run / "front.json", {**summary, "front": front})
    draw_front(result, run / "front.png")
    return summary


def draw_front(result: SearchResult, path: Path) -> None:
    """Write the front as a PNG. Raises UnavailableError without matplotlib."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot as plt
    except ImportError as error:
        raise UnavailableError("matplotlib is not installed.", "pip install 'vig[search]'") from error
    budget_ms = result.budget_ms
    figure, axes = plt.subplots(figsize=(7, 4.5), constrained_layout=True)
    latency, score = zip(*((ms, s) for ms, s, _ in result.front), strict=True)
    axes.plot(latency, score, "-", lw=1.8, color="#1f5fa8", label=f"front ({len(latency)} networks)")
    if result.random_front:
        chance = list(zip(*result.random_front, strict=True))
        axes.plot(*chance, ".", color="#999999", label=f"front of {result.num_evaluated:,} random networks")
    left = 0.97 * min(*latency, result.nearest.latency.ms)
    right = 1.2 * max(budget_ms, result.nearest.latency.ms)
    for network in result.published:
        axes.plot(network.latency.ms, network.top1_percent, "s", color="#b5502c")
        place = (network.latency.ms, network.top1_percent)
        late = network.latency.ms > left + 0.8 * (right - left)  # its name would leave the picture on the right
        offset, side = ((-6, -10), "right") if late else ((6, -10), "left")
        axes.annotate(network.name, place, xytext=offset, textcoords="offset points", fontsize=8, ha=side)
    axes.plot([], [], "s", color="#b5502c", label="published networks, priced and scored alike")
    axes.plot(result.best.latency.ms, result.best.top1_percent, "*", ms=14, color="#1f5fa8", label="best")
    axes.axvline(budget_ms, color="black", lw=0.8, ls=":", label=f"budget {budget_ms:g} ms")
    axes.set_xlim(left, right)
    inside = [n.top1_percent for n in result.published if n.latency.ms <= right]
    axes.set_ylim(min(*score, *inside) - 0.5, max(*score, *inside) + 0.5)
    covers = f"x/÷ {result.interval.factor} covers {result.interval.coverage_percent:g} %"
    axes.set_xlabel(f"latency, ms ({result.best.latency.device}, {result.best.latency.kind}, {covers})")
    plus_minus = load_score().interval(result.best.config.family).points_90
    axes.set_ylabel(f"ImageNet-1k top-1, % (predicted, ±{plus_minus})")
    axes.legend(fontsize=8, loc="lower right")
    axes.grid(alpha=0.25)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    plt.close(figure)
