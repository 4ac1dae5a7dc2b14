"""What travels in a round with each way to send an update, what that changes in the result, and what it costs to code.

The same federation is trained with each way and several seeds, so that only the code differs between two runs of a
seed. Beside it: what a lossless difference of two global states would save on the way down.
"""

import json
import time
import zlib
from collections.abc import Mapping
from statistics import mean, median
from typing import Any

import numpy as np

from common.model_state import Array, ModelState, decode_state
from common.update_codec import Scheme, decode_update, encode_update
from server.global_state import initial_global_state, trained_names
from server.run_folder import RunFolder
from simulations.benchmark.phantom_federation import Sites, phantom_federation, prepared_run, small_study
from simulations.benchmark.result import Benchmark, BenchmarkResult, Measurement, Options

UPLOADS = ("fp32", "fp16_delta", "int8_delta")
CODES: tuple[Scheme, ...] = ("fp16_delta", "int8_delta")
MOST_SHARE: Mapping[Scheme, float] = {"fp16_delta": 0.51, "int8_delta": 0.26}
MOST_AUC_CHANGE = 0.005
SPACING_MM = 2.0
MIB = 2**20


def measure(options: Options) -> BenchmarkResult:
    """Three hospitals, 32³ voxels, a quarter of the width, 16 rounds and 3 seeds; much less if quick."""
    letters = ("A", "C") if options.quick else ("A", "B", "C")
    patients, size, rounds, seeds = (15, 16, 2, (0,)) if options.quick else (40, 32, 16, (0, 1, 2))
    sites = phantom_federation(options.work / "hospitals", letters, patients=patients, spacing_mm=SPACING_MM, threads=1)
    runs = {
        (seed, upload): _run(options, sites, seed=seed, upload=upload, size=size, rounds=rounds)
        for seed in seeds
        for upload in UPLOADS
    }
    measurements: list[Measurement] = []
    plain = _bytes_up(runs[seeds[0], "fp32"])
    measurements.append(Measurement("reply of a site, fp32", plain / MIB, "MiB"))
    for code in CODES:
        share = _bytes_up(runs[seeds[0], code]) / plain
        changes = [_auc(runs[seed, code]) - _auc(runs[seed, "fp32"]) for seed in seeds]
        measurements += [
            Measurement(
                f"reply of a site, {code}, of fp32",
                100 * share,
                "%",
                target=f"<= {100 * MOST_SHARE[code]:g} %",
                reached=share <= MOST_SHARE[code],
            ),
            Measurement(
                f"change of the pooled test AUC by {code}",
                mean(changes),
                "AUC",
                target=f"within {MOST_AUC_CHANGE:g} on average",
                reached=abs(mean(changes)) <= MOST_AUC_CHANGE,
                note="by seed " + ", ".join(f"{change:+.4f}" for change in changes),
            ),
        ]
    measurements += _costs(options)
    measurements.append(_saved_on_the_way_down(runs[seeds[0], "fp32"], rounds))
    return BenchmarkResult(
        "bytes",
        tuple(measurements),
        {
            "hospitals": len(letters),
            "patients each": patients,
            "voxels": f"{size}³",
            "rounds": rounds,
            "seeds": len(seeds),
            "width": 0.25,
        },
    )


def _run(options: Options, sites: Sites, *, seed: int, upload: str, size: int, rounds: int) -> RunFolder:
    study = small_study(
        rounds=rounds,
        seed=seed,
        size=size,
        spacing_mm=SPACING_MM,
        model={"width": 0.25, "num_groups": 4},
        communication={"upload": upload},
    )
    return prepared_run(options.work / f"{upload}-{seed}", study, sites, engine="in-process", workers=2)


def _bytes_up(folder: RunFolder) -> float:
    """Bytes of a reply, as the record counts them; the median over rounds and sites."""
    rounds = [json.loads(line) for line in folder.rounds.read_text(encoding="utf-8").splitlines()]
    return float(median(site["bytes_up"] for record in rounds for site in record["sites"].values()))


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


def _saved_on_the_way_down(folder: RunFolder, rounds: int) -> Measurement:
    """Share of a global state that a lossless difference from the one before it would save; nothing sends it."""
    before, after = (
        decode_state(folder.state(round).read_bytes(), origin=f"round {round}") for round in (rounds - 1, rounds)
    )
    started = time.perf_counter()
    share = _compressed_difference(before, after) / sum(array.nbytes for array in after.values())
    seconds = time.perf_counter() - started
    return Measurement(
        "a lossless difference on the way down would save",
        100 * (1 - share),
        "%",
        note=f"exclusive or with the state before, by bytes of equal weight, zlib level 1, in {seconds:.2f} s",
    )


def _compressed_difference(before: ModelState, after: ModelState) -> int:
    size = 0
    for name, array in after.items():
        first, second = (np.ascontiguousarray(each).view(np.uint8).reshape(-1) for each in (before[name], array))
        planes = (first ^ second).reshape(-1, array.dtype.itemsize).T
        size += len(zlib.compress(np.ascontiguousarray(planes).tobytes(), 1))
    return size


BENCHMARK = Benchmark("bytes", "what travels in a round, and what coded updates change in the result", measure)
