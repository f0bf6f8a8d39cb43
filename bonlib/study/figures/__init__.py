"""Figures, one function each: arrays and DataFrames in, a matplotlib Figure out; never a trainer."""

from bonlib.study.figures.codes import (
    bit_balance,
    bits_compared,
    churn_over_training,
    embedding_map,
    flipped_bits,
    hash_over_training,
    occupancy,
    same_bucket,
)
from bonlib.study.figures.comparison import arrivals, costs, final_scores, leads, opponents, over, side_by_side
from bonlib.study.figures.datasets import curves_by_dataset, leads_over_identities, recall_over_gallery
from bonlib.study.figures.images import image_grid, retrievals, show_image
from bonlib.study.figures.negatives import active_over_training, distances_drawn, zero_loss
from bonlib.study.figures.plane import buckets_in_the_plane, window_in_the_plane
from bonlib.study.figures.run import seconds_by_part, training_curves
from bonlib.study.figures.style import save_figure, use_style

use_style()

__all__ = [
    "active_over_training",
    "arrivals",
    "bit_balance",
    "bits_compared",
    "buckets_in_the_plane",
    "churn_over_training",
    "costs",
    "curves_by_dataset",
    "distances_drawn",
    "embedding_map",
    "final_scores",
    "flipped_bits",
    "hash_over_training",
    "image_grid",
    "leads",
    "leads_over_identities",
    "occupancy",
    "opponents",
    "over",
    "recall_over_gallery",
    "retrievals",
    "same_bucket",
    "save_figure",
    "seconds_by_part",
    "show_image",
    "side_by_side",
    "training_curves",
    "window_in_the_plane",
    "zero_loss",
]
