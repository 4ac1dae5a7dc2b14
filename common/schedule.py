"""How the learning rate changes over the rounds."""

import math

from common.study import TrainingSpec


def learning_rate_in_round(training: TrainingSpec, *, round: int, num_rounds: int) -> float:
    """Step size in a round, counted from 1.

    Cosine annealing (Loshchilov & Hutter 2017, arXiv:1608.03983, equation 5) over the rounds, without restarts.
    """
    match training.schedule:
        case "constant":
            return training.learning_rate
        case "cosine":
            return training.learning_rate * 0.5 * (1 + math.cos(math.pi * (round - 1) / num_rounds))
