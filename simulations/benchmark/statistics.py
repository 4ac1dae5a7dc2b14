"""Pooled figures with their intervals, from the counts of very many sites."""

import numpy as np

from common.metrics.bins import MarginBins
from common.metrics.pooled import pooled_figures
from common.metrics.site_statistics import SiteStatistics
from simulations.benchmark.ratios import medians_in_turns
from simulations.benchmark.result import Benchmark, BenchmarkResult, Measurement, Options

MOST_MS = 50.0
PATIENTS = 40
BINS = MarginBins(num_bins=256, limit=8.0)


def measure(options: Options) -> BenchmarkResult:
    """Measure 1,000 sites, or 50 if quick."""
    num_sites = 50 if options.quick else 1000
    sites = {f"site-{number:04d}": _made_up_site(number) for number in range(num_sites)}
    pooled = medians_in_turns({"pooled": lambda: pooled_figures(sites, rows=False)}, repeats=max(options.repeats, 5))
    all_rows = medians_in_turns({"rows": lambda: pooled_figures(sites)}, repeats=1)
    milliseconds = 1e3 * pooled["pooled"]
    return BenchmarkResult(
        "statistics",
        (
            Measurement(
                "pooled figures and figures between sites, with intervals",
                milliseconds,
                "ms",
                target=f"< {MOST_MS:.0f} ms",
                reached=milliseconds < MOST_MS,
            ),
            Measurement(
                "the same and all figures of every site",
                1e3 * all_rows["rows"],
                "ms",
                note="a logistic fit for each site, once at the end of a run",
            ),
        ),
        {"sites": num_sites, "bins": BINS.num_bins, "patients a site": PATIENTS},
    )


def _made_up_site(number: int) -> SiteStatistics:
    rng = np.random.default_rng(number)
    labels = (rng.random(PATIENTS) < 0.4).astype(np.int64)
    margins = 1.5 * rng.normal(size=PATIENTS) + 1.5 * labels - 0.5 + 0.3 * rng.normal()
    return SiteStatistics.from_margins(margins, labels, bins=BINS, threshold=0.0)


BENCHMARK = Benchmark("statistics", "Pooled figures with intervals, from the counts of very many sites", measure)
