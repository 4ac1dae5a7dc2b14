"""Whether this machine can do a round of a study, and how long it will take."""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from client.config import SiteConfig
from client.main_memory import available_memory
from client.rehearsal.findings import Finding, shown_bytes, shown_seconds
from client.rehearsal.resources import ModelSize, check_gpu_memory, check_memory
from client.rehearsal.trial import Trial
from client.sampling import num_batches
from common.errors import GliornError
from common.study import Study

_LEAST_LIMIT_S = 300.0
"""A trial may always take this long, however short the study's rounds are."""


class TrialError(GliornError):
    """A round's work could not be done on this machine; the text says why and what to do."""

    code = "trial"


@dataclass(frozen=True)
class RoundEstimate:
    """How long a round is expected to take at this site, in seconds.

    Attributes:
        start_s: A process starts and loads the patients.
        validation_s: The state that arrived is evaluated.
        training_s: It is trained.
        transfer_s: The model comes and goes; None where no bandwidth is set, since nothing large was sent to measure.
    """

    start_s: float
    validation_s: float
    training_s: float
    transfer_s: float | None

    @property
    def total_s(self) -> float:
        """All that is known of."""
        return self.start_s + self.validation_s + self.training_s + (self.transfer_s or 0.0)


def rehearse_computing(config: SiteConfig, site_file: Path, study: Study, *, size: ModelSize) -> tuple[Finding, ...]:
    """Do the work of a round's beginning in a process of its own, measure it, and estimate the rest.

    Args:
        config: The site's configuration, with prepared exams in its cache.
        site_file: Where it lies.
        study: The study.
        size: Of its model.
    """
    if config.name in study.participation.held_out:
        found = "the study holds this site out of training; it only evaluates the finished model"
        return (Finding("computing", "step", "ok", found, study=study.name),)
    available = available_memory()
    started = time.monotonic()
    try:
        trial = start_trial(site_file, study, limit_s=max(study.participation.round_timeout_s, _LEAST_LIMIT_S))
    except TrialError as error:
        found, _, advice = str(error).partition("; ")
        return (Finding("computing", "step", "FAIL", found, advice, study.name),)
    findings = [
        Finding("computing", "device", "ok", trial.device, study=study.name),
        Finding(
            "computing",
            "step",
            "ok",
            f"forward and backward on real patients, loss {trial.loss:.3f}; {shown_seconds(trial.step_s)} a step "
            f"(median of {trial.num_timed} after a first of {shown_seconds(trial.first_step_s)})",
            study=study.name,
        ),
        check_memory(study, peak_bytes=trial.peak_bytes, available=available, size=size),
    ]
    if trial.gpu_peak_bytes is not None and trial.gpu_free_bytes is not None:
        findings.append(check_gpu_memory(study, peak_bytes=trial.gpu_peak_bytes, free_bytes=trial.gpu_free_bytes))
    bandwidth = config.server.max_bandwidth_mbit if config.server is not None else None
    estimate = estimate_round(
        trial, study, import_s=trial.imported_at - started, size=size, max_bandwidth_mbit=bandwidth
    )
    return (*findings, judge_round(estimate, study, size=size))


def start_trial(site_file: Path, study: Study, *, limit_s: float) -> Trial:
    """Run `client.rehearsal.trial` in a new process.

    Raises:
        TrialError: If the work cannot be done, the process is killed, or takes longer than the limit.
    """
    # Not `-m` with the current folder on the path: a folder of the hospital's may be named as one of ours.
    program = "import sys; from client.rehearsal.trial import main; sys.exit(main())"
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", program, str(site_file)],
            input=study.model_dump_json(),
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise TrialError(
            f"some steps of training were not done within {shown_seconds(limit_s)}; use a faster machine, or agree "
            "on a smaller crop, batch or model with the coordinator"
        ) from None
    if done.returncode < 0:
        raise TrialError(
            f"the process of the trial was ended from outside (signal {-done.returncode}), probably for want of "
            "memory; end other programs or use a machine with more memory"
        )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
        raise TrialError(f"the trial ended with a fault of this program: {last}; report it to the developers")
    values = json.loads(done.stdout)
    if "fault" in values:
        raise TrialError(str(values["fault"]))
    return Trial(**values)


def steps_per_round(study: Study, num_exams: int) -> int:
    """Optimiser steps of a round at a site of this many training exams."""
    spec = study.training
    if spec.local_steps is not None:
        return spec.local_steps
    assert spec.local_epochs is not None, "a study gives one of both"
    return spec.local_epochs * num_batches(num_exams, batch_size=spec.batch_size)


def estimate_round(
    trial: Trial, study: Study, *, import_s: float, size: ModelSize, max_bandwidth_mbit: float | None
) -> RoundEstimate:
    """Add up a round from what the trial measured.

    Args:
        trial: The measurement.
        study: The study.
        import_s: From the start of a process until its imports were done.
        size: Of the model, which travels.
        max_bandwidth_mbit: The site's own limit, megabits per second; None without one.
    """
    steps = steps_per_round(study, trial.num_training)
    transfer = None if max_bandwidth_mbit is None else _travelling(study, size) * 8 / (max_bandwidth_mbit * 1e6)
    return RoundEstimate(
        start_s=import_s + trial.open_s,
        validation_s=trial.validation_s,
        training_s=trial.first_step_s + (steps - 1) * trial.step_s,
        transfer_s=transfer,
    )


def _travelling(study: Study, size: ModelSize) -> int:
    """Bytes of a round's messages at most: the model comes and, unless sites train by themselves, goes."""
    ways = 1 if study.aggregation.method == "local" else 2
    control = 2 * size.trainable_bytes if study.training.control_variates else 0
    return ways * size.state_bytes + control


def judge_round(estimate: RoundEstimate, study: Study, *, size: ModelSize) -> Finding:
    """Hold the estimate against the time that a round waits for its replies."""
    limit = study.participation.round_timeout_s
    travels = f"transfer of {shown_bytes(_travelling(study, size))} in both directions together "
    travels += "not known" if estimate.transfer_s is None else shown_seconds(estimate.transfer_s)
    found = (
        f"about {shown_seconds(estimate.total_s)} of the {shown_seconds(limit)} that the study waits: start "
        f"{shown_seconds(estimate.start_s)}, validation {shown_seconds(estimate.validation_s)}, training "
        f"{shown_seconds(estimate.training_s)}, {travels}"
    )
    advice = (
        "use a faster device or link, or ask the coordinator for fewer local steps or a longer "
        "participation.round_timeout_s"
    )
    if estimate.total_s > limit:
        return Finding("computing", "round", "FAIL", found, advice, study.name)
    if estimate.total_s > limit / 2:
        return Finding("computing", "round", "warning", found, advice, study.name)
    return Finding("computing", "round", "ok", found, study=study.name)
