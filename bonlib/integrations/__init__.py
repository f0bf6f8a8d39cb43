"""BoN inside the trainers of other libraries: what a few lines in a loop cannot do."""
