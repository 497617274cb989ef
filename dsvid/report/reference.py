"""What is known of a run's curves from elsewhere: heights that follow from the loss, and measured runs of a recipe.

Every number has its source here; where nothing is known, nothing is drawn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dsvid.recipe import Recipe
from dsvid.report.settings import differences, recipe_keys, recipe_name, shipped

# Keys that may differ from the recipe's while its measured curve still holds: they do not change the weights.
FREE = (
    "run.seed", "run.max_steps", "run.stop_epoch", "run.log_every", "run.save_every", "run.keep", "run.images_every",
    "run.max_time", "run.watchdog_s", "run.save_timeout_s", "run.bad_steps", "run.spike_", "data.num_workers",
    "data.prefetch", "data.cache_mb", "data.decoder", "batch.micro", "eval.",
)  # fmt: skip


@dataclass(frozen=True)
class Level:
    """A height that means something, and what."""

    value: float
    words: str


@dataclass(frozen=True)
class Band:
    """Where the logged losses of measured runs lay: (epoch, lowest, highest) at some epochs, and what that is."""

    at: tuple[tuple[float, float, float], ...]
    source: str


# docs/report.md has the command, the date, and how the table was made.
BANDS = {
    "demo_pretrain": Band(
        at=(
            (1.5, 0.992, 0.995),
            (3, 0.991, 0.997),
            (6, 0.982, 0.995),
            (10, 0.976, 0.993),
            (14, 0.955, 0.989),
            (18, 0.904, 0.978),
            (22, 0.877, 0.961),
            (26, 0.847, 0.937),
            (30, 0.841, 0.945),
            (32, 0.841, 0.945),
        ),
        source="where the lines of two measured runs lay (seeds 0 and 1)",
    )
}


def loss_levels(recipe: Recipe) -> list[Level]:
    """Heights of the training loss that follow from its formula.

    Normalised targets have mean 0 and variance 1 in every patch, so predicting 0 costs (n - 1) / n for n pixels. Equal
    probabilities for K classes cost ln K, also against smoothed or mixed labels.
    """
    if recipe.task == "pretrain" and recipe.pretrain.norm_pix:
        return [Level(1.0, "predicting nothing but the mean colour of each hidden patch costs just under 1")]
    if recipe.task == "classify" and recipe.model.num_classes > 1:
        classes = recipe.model.num_classes
        return [Level(math.log(classes), f"guessing among {classes} classes costs ln {classes}")]
    if (
        recipe.task == "anomaly"
        and recipe.anomaly.loss == "crossentropy"
        and set(recipe.anomaly.class_weights) == {1.0}
    ):
        return [Level(math.log(2), "guessing costs ln 2")]
    return []


def chance(recipe: Recipe, metric: str) -> Level | None:
    """What guessing gives in a metric, where that is known: of classes with equally many videos, of risk."""
    classes = recipe.model.num_classes
    if recipe.task == "classify" and metric in ("top1", "mean_class", "top5") and classes > 1:
        share = min(1.0, (5 if metric == "top5" else 1) / classes)
        return Level(100 * share, f"what guessing among {classes} classes gives")
    return Level(0.5, "what guessing gives") if metric == "auroc" else None


def band_of(recipe: Recipe, argv: tuple[str, ...]) -> tuple[Band | None, str]:
    """The measured band of a run's recipe; else None, and a sentence that says why there is none."""
    base, name = shipped(argv), recipe_name(argv)
    if base is None or name is None:
        return None, "No reference curve is known: the recipe is not one that dsvid ships."
    band = BANDS.get(name)
    if band is None:
        return None, f"No reference curve of {name} is known."
    changed = [key for key, _, _ in differences(recipe_keys(recipe), recipe_keys(base)) if not key.startswith(FREE)]
    if changed:
        return None, f"Its reference curve is not drawn, because settings differ from the recipe's: {changed[0]}."
    return band, ""
