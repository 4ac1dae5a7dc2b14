"""Measuring the ways to train before a run, so that its first round need not, and a short run gains from it too."""

import torch

from client.acceleration.calibration import StepChoice, StepChoices
from client.config import SiteConfig
from client.site import find_device, use_threads
from common.study import Study


def measure_ahead(config: SiteConfig, study: Study, *, num_exams: int) -> StepChoice:
    """Measure with the site's device and number of threads, unless its cache knows already.

    Args:
        config: The site's.
        study: What will be trained; nothing is measured where it asks for fp32.
        num_exams: Training exams of the site.

    Raises:
        ConfigError: If the device is not there.
    """
    if study.training.precision == "fp32" or num_exams == 0:
        return StepChoice()
    before = torch.get_num_threads()
    use_threads(config)
    try:
        choices = StepChoices(config.cache)
        return choices.choose(study, num_exams=num_exams, device=find_device(config.device), however_short=True)
    finally:
        torch.set_num_threads(before)
