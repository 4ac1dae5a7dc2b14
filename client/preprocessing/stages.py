"""The stages of preparing an exam, each named by what decides its result, so that only what changed is done again."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from common.study import PreprocessingSpec, Sequence

PREPROCESSING_VERSION = 4
"""Raised with every change that alters a prepared array, so that no cache serves an old one."""

Stage = Literal["registration", "bias", "centre", "channel"]
"""What is stored: a motion, a shading, the middle of the crop, a sequence on the grid. z-scores are made at each load,
which takes less than reading them would."""
STAGES: tuple[Stage, ...] = get_args(Stage)

Arrays = Mapping[str, npt.NDArray[np.generic]]

_REFERENCES: tuple[Sequence, ...] = ("t1ce", "t1", "t2")


class StageStore(Protocol):
    """Where results are kept."""

    def read(self, stage: Stage, key: str) -> Arrays | None:
        """A stored result, if there is a sound one."""

    def write(self, stage: Stage, key: str, arrays: Arrays) -> None:
        """Keep a result."""


@dataclass(frozen=True)
class ExamKeys:
    """The keys of an exam's stages: SHA-256 over everything that decides the result, in hexadecimal.

    Attributes:
        digests: SHA-256 of every input file by its role: a sequence, `lesion_mask` or `brain_mask`.
        lesion_point: The source's point.
        spec: The study's settings.
    """

    digests: Mapping[str, str]
    lesion_point: tuple[float, float, float] | None
    spec: PreprocessingSpec

    def registration(self, sequence: Sequence) -> str | None:
        """Key of a sequence's motion; None where it is not registered."""
        fixed = reference_of(self.digests)
        if self.spec.registration == "none" or sequence == fixed:
            return None
        return _key("registration", moving=self.digests[sequence], fixed=self.digests[fixed])

    def bias(self, sequence: Sequence) -> str | None:
        """Key of a sequence's shading; None where it is left."""
        return None if self.spec.bias_correction == "none" else _key("bias", volume=self.digests[sequence])

    def centre(self) -> str:
        """Key of the middle of the crop."""
        spec = self.spec
        return _key(
            "centre",
            files=sorted(self.digests.items()),
            point=self.lesion_point,
            settings=(spec.crop, spec.missing_sequence, spec.registration, spec.bias_correction),
        )

    def channel(self, sequence: Sequence, centre: tuple[float, float, float]) -> str:
        """Key of a sequence on the grid about a centre."""
        return _key(
            "channel",
            volume=self.digests[sequence],
            # Where a brain gives the brightness, its place in a moved volume is the reference's affair too.
            brain=self.digests.get("brain_mask"),
            stages=(self.registration(sequence), self.bias(sequence)),
            grid=(centre, self.spec.spacing_mm, self.spec.size_voxels),
        )


def reference_of(volumes: Container[str]) -> Sequence:
    """The sequence that gives an exam its world: T1ce, or the next best where it is missing."""
    return next(sequence for sequence in _REFERENCES if sequence in volumes)


def _key(stage: Stage, **parts: object) -> str:
    text = json.dumps({"version": PREPROCESSING_VERSION, "stage": stage, **parts}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class Stages:
    """Gives the results of an exam's stages: stored ones where there are any, new ones otherwise, which it counts.

    Args:
        keys: The exam's keys; None keeps nothing.
        store: Where results are kept.
    """

    def __init__(self, keys: ExamKeys | None = None, store: StageStore | None = None) -> None:
        self.keys = keys
        self._store = store
        self.computed: Counter[Stage] = Counter()

    def result(self, stage: Stage, key: Callable[[ExamKeys], str | None], compute: Callable[[], Arrays]) -> Arrays:
        """The result of one stage.

        Args:
            stage: Which.
            key: Its key among the exam's.
            compute: Makes it.
        """
        name = None if self.keys is None else key(self.keys)
        if self._store is not None and name is not None:
            stored = self._store.read(stage, name)
            if stored is not None:
                return stored
        made = compute()
        self.computed[stage] += 1
        if self._store is not None and name is not None:
            self._store.write(stage, name, made)
        return made
