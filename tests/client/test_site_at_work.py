"""A site at work on real files: what it describes, evaluates and trains."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from client.config import SiteConfig, read_site_config
from client.site import Site, find_device
from client.training import round_generator
from common.errors import ConfigError, DisclosureError, ProtocolError, TrainingError
from common.messages import bins_of
from common.model_state import state_digest, update_norm
from common.models import build_model, get_state, initial_state, set_state
from common.study import Study, parse_study
from common.tasks import EvaluateTask, TrainTask
from tests.tiny_hospitals import study_text, write_tiny_hospital


def study(**changes: object) -> Study:
    return parse_study(study_text(**changes), origin="study")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> SiteConfig:
    return read_site_config(write_tiny_hospital(tmp_path_factory.mktemp("hospital"), "a"))


def changed_config(path: Path, **settings: object) -> SiteConfig:
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | settings))
    return read_site_config(path)


def task(of: Study, *, round: int = 1, mu: float = 0.0, run: str = "run") -> TrainTask:
    state = initial_state(of.model, num_sequences=3, seed=of.seed)
    return TrainTask(of, run, round, (1.0, 1.0), mu, state, class_counts=(3, 2))


def test_manifest_counts_what_is_there_and_names_nobody(config: SiteConfig) -> None:
    site = Site.open(config, study())

    manifest = site.describe()

    assert manifest.num_patients == {"train": (4, 4), "validation": (3, 3), "test": (3, 3)}
    assert manifest.num_exams == {"train": 8, "validation": 6, "test": 6}
    assert manifest.missing_sequences == {"t1": 0, "t2": 0, "t1ce": 0}
    assert sum(manifest.crop_centers.values()) == 20
    assert manifest.torch_threads == 1
    assert manifest.study_digest == study().digest
    # Four digits stand in a digest by chance.
    shown = re.sub(r"\b[0-9a-f]{64}\b", "", repr(manifest))
    assert "num_patients" in shown
    for exam in site.cohort.cohort.exams:
        assert exam.patient_id not in shown


def test_cohort_digests_hide_the_patients_and_differ_between_sites(config: SiteConfig, tmp_path: Path) -> None:
    twin = read_site_config(write_tiny_hospital(tmp_path, "a"))

    here, there = Site.open(config, study()).describe(), Site.open(twin, study()).describe()

    # The same patients of the same name at two places with secrets of their own.
    assert len({*here.cohort_digests.values(), *there.cohort_digests.values()}) == 6
    assert Site.open(config, study(seed=9)).describe().cohort_digests == here.cohort_digests


def test_round_is_an_evaluation_of_what_arrived_and_a_plain_training_of_it(config: SiteConfig) -> None:
    agreed = study(
        augmentation=dict.fromkeys(
            ("flip_probability", "rotation_degrees", "scaling", "translation_mm", "intensity", "noise"), 0.0
        ),
        training={"optimizer": "sgd", "learning_rate": 0.1, "schedule": "cosine"},
    )
    site, asked = Site.open(config, agreed), task(agreed, round=2)

    reply = site.train(asked)

    plain = build_model(agreed.model, num_sequences=3)
    set_state(plain, asked.state)
    patients = site.cohort.splits["train"]
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    generator = round_generator(seed=agreed.seed, site="a", round=2)
    for part in torch.tensor_split(torch.randperm(8, generator=generator), 2):
        optimizer.zero_grad()
        nn.CrossEntropyLoss()(plain(patients.images[part]), patients.labels[part]).backward()
        optimizer.step()
    assert state_digest(reply.state) == state_digest(get_state(plain))
    assert (reply.num_steps, reply.num_patients, reply.optimizer, reply.round) == (2, (4, 4), "fresh", 2)
    before = site.evaluate(
        EvaluateTask(
            agreed, "validation", None, asked.state, run="run", round=1, class_weights=(1.0, 1.0), class_counts=(3, 2)
        )
    )
    assert reply.evaluation == before.evaluation


def test_without_pull_fedprox_is_fedavg_and_with_it_the_site_stays_nearer(config: SiteConfig) -> None:
    agreed = study(training={"optimizer": "sgd", "learning_rate": 0.05, "local_epochs": 4})
    site = Site.open(config, agreed)
    free, again, held = (site.train(task(agreed, mu=mu)) for mu in (0.0, 0.0, 5.0))
    start = task(agreed).state

    assert state_digest(again.state) == state_digest(free.state)
    assert update_norm(held.state, start) < update_norm(free.state, start)


def test_momentum_is_carried_from_round_to_round_where_the_study_says_so(config: SiteConfig) -> None:
    agreed = study(training={"optimizer": "sgd", "momentum": 0.9, "keep_optimizer_state": True}, rounds=3)
    site = Site.open(config, agreed)

    first = site.train(task(agreed, round=1, run="carried"))
    second = site.train(task(agreed, round=2, run="carried"))
    again = site.train(task(agreed, round=2, run="carried"))
    fresh = site.train(task(agreed, round=2, run="another"))

    assert [reply.optimizer for reply in (first, second, again, fresh)] == ["fresh", "continued", "continued", "fresh"]
    assert state_digest(again.state) == state_digest(second.state)
    assert state_digest(fresh.state) != state_digest(second.state)


def test_test_patients_are_counted_at_the_frozen_threshold(config: SiteConfig) -> None:
    agreed = study()
    site = Site.open(config, agreed)

    reply = site.evaluate(
        EvaluateTask(
            agreed,
            "test",
            float("-inf"),
            task(agreed).state,
            run="run",
            round=1,
            class_weights=(1.0, 1.0),
            class_counts=(3, 2),
        )
    )

    statistics = reply.evaluation.statistics
    assert statistics is not None
    assert statistics.bins == bins_of(agreed)
    assert statistics.num_patients == (3, 3)
    assert statistics.confusion is not None
    assert (statistics.confusion.true_positive, statistics.confusion.false_positive) == (3, 3)
    assert reply.evaluation.cohort_digest == site.describe().cohort_digests["test"]


def test_task_in_a_fresh_thread_or_after_another_site_computes_with_the_site_s_own_threads(
    config: SiteConfig,
) -> None:
    site = Site.open(config, study())
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        site.train(task(study()))
        assert torch.get_num_threads() == 1
        torch.set_num_threads(2)
        assert site.describe().torch_threads == 1
    finally:
        torch.set_num_threads(before)


def test_state_of_another_network_is_refused(config: SiteConfig) -> None:
    agreed, other = study(), study(model={"width": 0.25})

    with pytest.raises(ProtocolError, match=r"conv1\.weight has shape \(16, 3, 7, 7, 7\)"):
        Site.open(config, agreed).train(replace(task(agreed), state=task(other).state))


def test_state_that_is_no_use_is_refused_before_any_training(config: SiteConfig) -> None:
    agreed = study()
    spoilt = {name: np.full_like(array, np.nan) for name, array in task(agreed).state.items()}

    with pytest.raises(TrainingError, match="6 of 6 margins are not finite; the model state that arrived is unusable"):
        Site.open(config, agreed).train(replace(task(agreed), state=spoilt))


def test_site_with_too_few_training_patients_takes_no_part(tmp_path: Path) -> None:
    path = write_tiny_hospital(tmp_path, "a", disclosure={"min_patients": 9, "min_cell": 1, "max_bins": 32})

    with pytest.raises(DisclosureError, match=r"8 training patients, this site takes part with at least 9"):
        Site.open(read_site_config(path), study())


def test_study_that_counts_too_finely_is_refused(tmp_path: Path) -> None:
    path = write_tiny_hospital(tmp_path, "a", disclosure={"min_patients": 1, "min_cell": 1, "max_bins": 16})

    with pytest.raises(DisclosureError, match=r"in 32 bins, this site shows at most 16"):
        Site.open(read_site_config(path), study())


def test_device_that_is_not_there_is_refused_with_advice(tmp_path: Path) -> None:
    config = changed_config(write_tiny_hospital(tmp_path, "a"), device="cuda:77")

    with pytest.raises(ConfigError, match=r"device: found \d+ CUDA devices, cuda:77 is not among them; write auto or"):
        Site.open(config, study())


def test_automatic_device_is_the_cpu_where_there_is_no_other() -> None:
    assert find_device("cpu").type == "cpu"
    assert find_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
