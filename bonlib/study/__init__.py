"""The study: runs from config to record, statistics over seeds, figures, sweeps. Notebooks call it."""
