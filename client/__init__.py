"""A hospital: its configuration, cohort, preprocessing, local training, evaluation and disclosure."""
