"""What travels in a round with each way to send states, what that changes in the result, and what it costs to code.

The same federation is trained with each way and several seeds, so that only the code differs between two runs of a
seed. Any change of a number in an early round leads to another model in the end, so that a learning rate a millionth
higher is measured as well: what a code changes beyond that is its own doing. Half of the patients are for the test.
"""

import json
import time
from collections.abc import Mapping, Sequence
from statistics import mean, median
from typing import Any

import numpy as np

from common.model_state import Array
from common.update_codec import Scheme, decode_update, encode_update
from server.global_state import initial_global_state, trained_names
from server.run_folder import RunFolder
from simulations.benchmark.phantom_federation import Sites, phantom_federation, prepared_run, small_study
from simulations.benchmark.result import Benchmark, BenchmarkResult, Measurement, Options

CODES: tuple[Scheme, ...] = ("fp16_delta", "int8_delta")
PLAIN: Mapping[str, str] = {}
WAYS: Mapping[str, Mapping[str, str]] = {
    "fp32": PLAIN,
    **{f"{code} up": {"upload": code} for code in CODES},
    **{f"{code} down": {"download": code} for code in CODES},
    "int8_delta both ways": {"upload": "int8_delta", "download": "int8_delta"},
}
"""Settings of the study's `communication`, by what they are called here."""
NUDGE = "a learning rate a millionth higher"
"""Beside the ways: a change that nobody would think of as one."""
MOST_SHARE: Mapping[str, float] = {"fp16_delta": 0.51, "int8_delta": 0.26}
MOST_AUC_CHANGE = 0.005
SPACING_MM, LEARNING_RATE = 2.0, 1e-3
_SPLIT = {"validation": 0.1, "test": 0.49}
MIB = 2**20


def measure(options: Options) -> BenchmarkResult:
    """Three hospitals, 32³ voxels, a quarter of the width, 16 rounds and 3 seeds; much less if quick."""
    letters = ("A", "C") if options.quick else ("A", "B", "C")
    patients, size, rounds, seeds = (15, 16, 2, (0,)) if options.quick else (120, 32, 16, (0, 1, 2))
    sites = phantom_federation(options.work / "hospitals", letters, patients=patients, spacing_mm=SPACING_MM, threads=1)
    runs = {
        (seed, way): _run(options, sites, seed=seed, way=way, size=size, rounds=rounds)
        for seed in seeds
        for way in (*WAYS, NUDGE)
    }
    measurements: list[Measurement] = []
    plain = {name: _bytes_of(runs[seeds[0], "fp32"], name) for name in ("bytes_up", "bytes_down")}
    measurements.append(Measurement("reply of a site, fp32", plain["bytes_up"] / MIB, "MiB"))
    measurements.append(Measurement("message to a site, fp32", plain["bytes_down"] / MIB, "MiB"))
    for way, settings in WAYS.items():
        for setting, code in settings.items():
            name, what = ("bytes_up", "reply of") if setting == "upload" else ("bytes_down", "message to")
            share, most = _bytes_of(runs[seeds[0], way], name) / plain[name], MOST_SHARE[code]
            measurements.append(
                Measurement(
                    f"{what} a site, {way}, of fp32",
                    100 * share,
                    "%",
                    target=f"<= {100 * most:g} %",
                    reached=share <= most,
                )
            )
        if settings:
            changes = [_auc(runs[seed, way]) - _auc(runs[seed, "fp32"]) for seed in seeds]
            measurements.append(
                Measurement(
                    f"change of the pooled test AUC by {way}",
                    mean(changes),
                    "AUC",
                    target=f"within {MOST_AUC_CHANGE:g} on average",
                    reached=abs(mean(changes)) <= MOST_AUC_CHANGE,
                    note=_by_seed(changes),
                )
            )
    nudged = [_auc(runs[seed, NUDGE]) - _auc(runs[seed, "fp32"]) for seed in seeds]
    measurements.append(
        Measurement(f"change of the pooled test AUC by {NUDGE}", mean(nudged), "AUC", note=_by_seed(nudged))
    )
    aucs = [_auc(runs[seed, "fp32"]) for seed in seeds]
    measurements.append(Measurement("pooled test AUC, fp32", mean(aucs), "AUC", note=_by_seed(aucs)))
    measurements += _costs(options)
    return BenchmarkResult(
        "bytes",
        tuple(measurements),
        {
            "hospitals": len(letters),
            "patients each": patients,
            "of them for the test": f"{100 * _SPLIT['test']:.0f} %",
            "voxels": f"{size}³",
            "rounds": rounds,
            "seeds": len(seeds),
            "width": 0.25,
        },
    )


def _by_seed(values: Sequence[float]) -> str:
    return "by seed " + ", ".join(f"{value:+.4f}" for value in values)


def _run(options: Options, sites: Sites, *, seed: int, way: str, size: int, rounds: int) -> RunFolder:
    study = small_study(
        rounds=rounds,
        seed=seed,
        size=size,
        spacing_mm=SPACING_MM,
        split=_SPLIT,
        model={"width": 0.25, "num_groups": 4},
        communication=dict(WAYS.get(way, PLAIN)),
        training={"learning_rate": LEARNING_RATE * (1 + 1e-6 * (way == NUDGE))},
    )
    return prepared_run(options.work / f"{way}-{seed}".replace(" ", "-"), study, sites, engine="in-process", workers=2)


def _bytes_of(folder: RunFolder, name: str) -> float:
    """Bytes of a message, as the record counts them; the median over rounds after the first and sites."""
    rounds = [json.loads(line) for line in folder.rounds.read_text(encoding="utf-8").splitlines()]
    return float(median(site[name] for record in rounds[1:] for site in record["sites"].values()))


def _auc(folder: RunFolder) -> float:
    record: dict[str, Any] = json.loads(folder.record.read_text(encoding="utf-8"))
    return float(record["figures"]["test"]["figures"]["pooled"]["auc"]["estimate"]["value"])


def _costs(options: Options) -> list[Measurement]:
    """Seconds to code and to read an update of the full-width network; a quarter of it if quick."""
    study = small_study(rounds=1, seed=0, size=16, spacing_mm=SPACING_MM, model={"width": 0.25, "num_groups": 4})
    if not options.quick:
        study = small_study(rounds=1, seed=0, size=16, spacing_mm=SPACING_MM)
    trained = trained_names(study)
    before: dict[str, Array] = initial_global_state(study)
    rng = np.random.default_rng(0)
    after = {
        name: array + 1e-3 * rng.standard_normal(array.shape).astype(np.float32) if name in trained else array
        for name, array in before.items()
    }
    measurements = []
    for code in CODES:
        writing, reading = [], []
        for _ in range(options.repeats):
            started = time.perf_counter()
            update, _ = encode_update(after, before, code, trained=trained)
            written = time.perf_counter()
            decode_update(update, before, code, trained=trained)
            writing.append(written - started)
            reading.append(time.perf_counter() - written)
        measurements.append(Measurement(f"coding an update, {code}", median(writing), "s", note="at a site, one core"))
        measurements.append(Measurement(f"reading an update, {code}", median(reading), "s", note="at the coordinator"))
    return measurements


BENCHMARK = Benchmark("bytes", "what travels in a round, and what coded updates change in the result", measure)
