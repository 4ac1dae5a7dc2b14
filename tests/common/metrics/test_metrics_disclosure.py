"""What may leave a site in the clear."""

import numpy as np
import pytest

from common.errors import DisclosureError
from common.metrics.bins import MarginBins
from common.metrics.disclosure import require_enough_sites, require_may_leave_in_the_clear
from common.metrics.site_statistics import SiteStatistics


def statistics(num_bins: int, num_recurrence: int, num_necrosis: int) -> SiteStatistics:
    labels = np.repeat([0, 1], [num_recurrence, num_necrosis])
    bins = MarginBins(num_bins=num_bins, limit=5.0)
    return SiteStatistics.from_margins(np.zeros(labels.size), labels, bins=bins, threshold=None)


def test_a_fine_histogram_stays_at_the_site() -> None:
    with pytest.raises(DisclosureError, match="33 bins shows single scores, expected at most 32"):
        require_may_leave_in_the_clear(statistics(33, 20, 20))


@pytest.mark.parametrize("sizes", [(20, 4), (4, 20), (20, 0)])
def test_a_small_class_stays_at_the_site_and_its_size_unsaid(sizes: tuple[int, int]) -> None:
    with pytest.raises(DisclosureError, match="a class has fewer than 5 patients"):
        require_may_leave_in_the_clear(statistics(32, *sizes))


def test_a_coarse_histogram_of_enough_patients_may_leave() -> None:
    require_may_leave_in_the_clear(statistics(32, 5, 5))
    require_may_leave_in_the_clear(statistics(32, 3, 3), min_cell=3)


def test_two_sites_are_too_few_for_a_pool() -> None:
    with pytest.raises(DisclosureError, match="2 sites answered, expected at least 3"):
        require_enough_sites(2)
    require_enough_sites(3)
