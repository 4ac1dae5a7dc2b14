"""What may leave a site in the clear: a fine histogram of a few patients is the list of their scores.

Through secure aggregation only the pool is seen, and these limits concern the pool alone.
"""

from common.errors import DisclosureError
from common.metrics.site_statistics import SiteStatistics

MAX_BINS_IN_THE_CLEAR = 32
MIN_SITES = 3


def require_may_leave_in_the_clear(statistics: SiteStatistics, *, min_cell: int = 5) -> None:
    """Refuse to send statistics that nobody adds up on the way.

    Args:
        statistics: One site's.
        min_cell: Fewest patients of each class that the site's own configuration allows.

    Raises:
        DisclosureError: If the histogram is finer than 32 bins, or a class has fewer patients than min_cell.
    """
    if statistics.bins.num_bins > MAX_BINS_IN_THE_CLEAR:
        raise DisclosureError(
            f"evaluation: a histogram of {statistics.bins.num_bins} bins shows single scores, expected at most "
            f"{MAX_BINS_IN_THE_CLEAR} without secure aggregation; lower the study's number of bins"
        )
    if min(statistics.num_patients) < min_cell:
        raise DisclosureError(
            f"evaluation: a class has fewer than {min_cell} patients, the site's min_cell; "
            "evaluate more patients or leave this site out of the evaluation"
        )


def require_enough_sites(num_sites: int, *, min_sites: int = MIN_SITES) -> None:
    """Refuse pooled figures from so few sites that one could subtract its own and read the other's.

    Raises:
        DisclosureError: If there are fewer.
    """
    if num_sites < min_sites:
        raise DisclosureError(
            f"evaluation: {num_sites} sites answered, expected at least {min_sites} for pooled figures; "
            "wait for more sites"
        )
