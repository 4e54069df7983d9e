"""The picture of a search: latency against predicted accuracy, with the published networks on it."""

from __future__ import annotations

from pathlib import Path

from vigcli.errors import UnavailableError
from vigcli.files import replacing
from vigcli.search.job import SearchResult


def draw_front(result: SearchResult, budget_ms: float, path: Path) -> None:
    """Write the front as a PNG. Raises UnavailableError without matplotlib."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot as plt
    except ImportError as error:
        raise UnavailableError("matplotlib is not installed.", "pip install 'vig[search]'") from error
    figure, axes = plt.subplots(figsize=(7, 4.5), constrained_layout=True)
    latency, score = zip(*((ms, s) for ms, s, _ in result.front), strict=True)
    axes.plot(latency, score, "-", lw=1.8, color="#1f5fa8", label=f"front ({len(latency)} networks)")
    if result.random_front:
        chance = list(zip(*result.random_front, strict=True))
        axes.plot(*chance, ".", color="#999999", label=f"front of {result.num_evaluated:,} random networks")
    for network in result.published:
        axes.plot(network.latency.ms, network.top1_percent, "s", color="#b5502c")
        axes.annotate(network.name, (network.latency.ms, network.top1_percent), xytext=(6, -10), textcoords="offset points", fontsize=8)  # fmt: skip
    axes.plot([], [], "s", color="#b5502c", label="published networks, priced and scored alike")
    axes.plot(result.best.latency.ms, result.best.top1_percent, "*", ms=14, color="#1f5fa8", label="best")
    axes.axvline(budget_ms, color="black", lw=0.8, ls=":", label=f"budget {budget_ms:g} ms")
    right = 1.15 * max(budget_ms, result.nearest.latency.ms)
    axes.set_xlim(0.97 * min(*latency, result.nearest.latency.ms), right)
    inside = [n.top1_percent for n in result.published if n.latency.ms <= right]
    axes.set_ylim(min(*score, *inside) - 0.5, max(*score, *inside) + 0.5)
    axes.set_xlabel(f"latency, ms ({result.best.latency.device}, calibrated, x/÷ 1.12 covers 81 %)")
    axes.set_ylabel("ImageNet-1k top-1, % (predicted, ±1.3)")
    axes.legend(fontsize=8, loc="lower right")
    axes.grid(alpha=0.25)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    plt.close(figure)
