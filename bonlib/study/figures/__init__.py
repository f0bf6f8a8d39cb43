"""Figures, one function each: arrays and DataFrames in, a matplotlib Figure out; never a trainer."""

from bonlib.study.figures.codes import (
    bit_balance,
    bits_compared,
    embedding_map,
    hash_over_training,
    occupancy,
    same_bucket,
)
from bonlib.study.figures.comparison import compare, costs, final_scores, hashes, leads, opponents, over
from bonlib.study.figures.datasets import across, curves_by_dataset, lead_over_identities, recall_over_gallery
from bonlib.study.figures.images import image_grid, retrievals, show_image
from bonlib.study.figures.negatives import active_over_training, distances_to_negatives, zero_loss
from bonlib.study.figures.run import seconds_by_part, training_curves
from bonlib.study.figures.style import save_figure, use_style

use_style()

__all__ = [
    "across",
    "active_over_training",
    "bit_balance",
    "bits_compared",
    "compare",
    "costs",
    "curves_by_dataset",
    "distances_to_negatives",
    "embedding_map",
    "final_scores",
    "hash_over_training",
    "hashes",
    "image_grid",
    "lead_over_identities",
    "leads",
    "occupancy",
    "opponents",
    "over",
    "recall_over_gallery",
    "retrievals",
    "same_bucket",
    "save_figure",
    "seconds_by_part",
    "show_image",
    "training_curves",
    "zero_loss",
]
