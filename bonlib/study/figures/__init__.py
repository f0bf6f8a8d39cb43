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
