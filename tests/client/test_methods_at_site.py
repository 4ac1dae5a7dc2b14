"""Methods whose state stays at a site, on real files: what leaves, what stays, and the identities that must hold."""

import logging
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from client.config import SiteConfig, read_site_config
from client.fine_tuning import last_block_names
from client.own_layers import estimate_statistics, names_that_stay
from client.site import Site
from client.site_memory import SiteMemory
from client.training import round_generator
from common.errors import ProtocolError, TrainingError
from common.messages import bins_of
from common.metrics.auc import pooled_auc
from common.metrics.operating_point import ThresholdRule, choose_threshold
from common.metrics.site_statistics import SiteStatistics
from common.model_state import Array, ModelState, state_digest, update_norm
from common.models import build_model, get_state, initial_state, set_state
from common.study import Study, parse_study
from common.tasks import EvaluateReply, EvaluateTask, OwnChoice, TrainReply, TrainTask
from tests.tiny_hospitals import study_text, write_tiny_hospital

ROUNDS = 3
BATCH = {"width": 0.125, "norm": "batch"}


def study(**changes: object) -> Study:
    return parse_study(study_text(**{"rounds": ROUNDS, **changes}), origin="study")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> SiteConfig:
    return read_site_config(write_tiny_hospital(tmp_path_factory.mktemp("hospital"), "a"))


def initial(of: Study) -> dict[str, Array]:
    state = initial_state(of.model, num_sequences=3, seed=of.seed)
    absent = names_that_stay(of) if of.aggregation.method != "local" else frozenset()
    return {name: array for name, array in state.items() if name not in absent}


def train(
    site: Site,
    state: ModelState,
    *,
    round: int,
    run: str,
    control: ModelState | None = None,
    class_counts: tuple[int, int] = (12, 4),
) -> TrainReply:
    return site.train(
        TrainTask(site.study, run, round, (1.0, 1.0), 0.0, state, class_counts=class_counts, control=control)
    )


def evaluate(site: Site, state: ModelState, *, round: int, run: str, own_round: bool = False) -> EvaluateReply:
    return site.evaluate(
        EvaluateTask(
            site.study,
            "test",
            0.0,
            state,
            run=run,
            round=round,
            own_round=own_round,
            class_weights=(1.0, 1.0),
            class_counts=(12, 4),
        )
    )


def alone(site: Site, *, run: str, rounds: int = ROUNDS) -> list[TrainReply]:
    """The replies of a federation of one site, whose state is the next global one."""
    replies: list[TrainReply] = []
    for round in range(1, rounds + 1):
        state = replies[-1].state if replies else initial(site.study)
        replies.append(train(site, state, round=round, run=run))
    return replies


# --- FedBN and SiloBN -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "num_absent"), [("fedbn", 60), ("silobn", 36)])
def test_one_site_with_own_layers_is_one_with_batch_norm_bit_for_bit_and_sends_fewer(
    norm: str, num_absent: int, config: SiteConfig
) -> None:
    plain = alone(Site.open(config, study(model=BATCH)), run="batch")[-1].state

    site = Site.open(config, study(model=BATCH | {"norm": norm}))
    sent = alone(site, run=norm)[-1].state

    kept = SiteMemory(config.cache, run=norm, study_digest=site.study.digest).latest("own", round=ROUNDS)
    assert kept is not None
    assert len(kept) == num_absent
    assert not sent.keys() & kept.keys()
    assert state_digest({**sent, **kept}) == state_digest(plain)


def test_no_key_of_twelve_normalisation_layers_is_in_a_fedbn_reply(config: SiteConfig) -> None:
    site = Site.open(config, study(model=BATCH | {"norm": "fedbn"}))

    reply = train(site, initial(site.study), round=1, run="payload")

    layers = ["bn1", *(f"layer{n}.0.bn{k}" for n in (1, 2, 3, 4) for k in (1, 2))]
    layers += [f"layer{n}.0.downsample.1" for n in (2, 3, 4)]
    assert len(layers) == 12
    assert not [name for name in reply.state if name.rpartition(".")[0] in layers]


def test_site_that_missed_a_round_takes_its_own_layers_of_before(config: SiteConfig) -> None:
    site = Site.open(config, study(model=BATCH | {"norm": "fedbn"}))
    first = train(site, initial(site.study), round=1, run="missed")

    at_once = evaluate(site, first.state, round=1, run="missed")
    later = evaluate(site, first.state, round=2, run="missed")

    assert later.evaluation == at_once.evaluation


def test_round_that_is_run_again_gives_the_same_bytes(config: SiteConfig) -> None:
    site = Site.open(config, study(model=BATCH | {"norm": "fedbn"}, personalization={"method": "ditto"}))
    first = train(site, initial(site.study), round=1, run="again")

    replies = [train(site, first.state, round=2, run="again") for _ in range(2)]
    personal = [evaluate(site, first.state, round=2, run="again").personal for _ in range(2)]

    assert state_digest(replies[0].state) == state_digest(replies[1].state)
    assert replies[0].evaluation == replies[1].evaluation
    assert personal[0] == personal[1]


@pytest.mark.parametrize("norm", ["fedbn", "silobn"])
def test_hospital_the_model_is_new_to_estimates_its_statistics_from_its_training_images(
    norm: str, config: SiteConfig
) -> None:
    site = Site.open(config, study(model=BATCH | {"norm": norm}))
    arrived = {name: array * np.float32(1.01) for name, array in initial(site.study).items()}

    reply = evaluate(site, arrived, round=2, run="unseen")

    model = build_model(site.study.model, num_sequences=3)
    complete = initial_state(site.study.model, num_sequences=3, seed=site.study.seed) | arrived
    set_state(model, complete)
    estimate_statistics(
        model,
        site.cohort.splits["train"].images,
        batch_size=4,
        generator=round_generator(seed=3, site="a", round=2, purpose="statistics"),
    )
    assert reply.evaluation == site._shown(site._scores(model, "test"), "test", threshold=0.0)
    set_state(model, complete)
    assert reply.evaluation != site._shown(site._scores(model, "test"), "test", threshold=0.0)


def test_in_round_one_everybody_starts_at_the_initial_values(config: SiteConfig) -> None:
    batch, fedbn = (Site.open(config, study(model=BATCH | {"norm": norm})) for norm in ("batch", "fedbn"))

    plain = train(batch, initial(batch.study), round=1, run="first")
    own = train(fedbn, initial(fedbn.study), round=1, run="first")

    assert own.evaluation == plain.evaluation


# --- Ditto ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"training": {"keep_optimizer_state": True}}, id="adamw that goes on"),
        pytest.param({"training": {"fedprox_mu": 0.1}, "model": BATCH | {"norm": "silobn"}}, id="silobn"),
    ],
)
def test_ditto_leaves_the_global_model_as_it_is_bit_for_bit(settings: dict[str, object], config: SiteConfig) -> None:
    without = alone(Site.open(config, study(**settings)), run="without")
    with_ditto = alone(Site.open(config, study(**settings, personalization={"method": "ditto"})), run="with")

    for one, other in zip(without, with_ditto, strict=True):
        assert state_digest(one.state) == state_digest(other.state)
        assert (one.evaluation, one.train_loss, one.optimizer) == (other.evaluation, other.train_loss, other.optimizer)


def personal_state(site: Site, run: str, *, round: int) -> dict[str, Array]:
    values = SiteMemory(site.config.cache, run=run, study_digest=site.study.digest).read("personal", round=round)
    assert values is not None
    return values


def test_own_model_of_ditto_stays_nearer_the_harder_it_is_pulled(config: SiteConfig) -> None:
    sgd = {"optimizer": "sgd", "learning_rate": 0.02, "local_epochs": 4}
    distances = []
    for strength in (0.01, 10.0):
        agreed = study(training=sgd, personalization={"method": "ditto", "ditto_lambda": strength})
        site = Site.open(config, agreed)
        train(site, initial(agreed), round=1, run="pull")
        distances.append(update_norm(personal_state(site, "pull", round=1), initial(agreed)))

    assert 0 < distances[1] < 0.7 * distances[0]


def test_own_model_of_ditto_goes_on_from_itself_and_not_from_the_global_one(config: SiteConfig) -> None:
    agreed = study(personalization={"method": "ditto", "ditto_lambda": 0.001})
    site = Site.open(config, agreed)
    train(site, initial(agreed), round=1, run="on")
    first = personal_state(site, "on", round=1)

    for run in ("on", "new"):  # the global model has not moved
        train(site, initial(agreed), round=2, run=run)
    went_on, began = (personal_state(site, run, round=2) for run in ("on", "new"))

    assert update_norm(went_on, first) < 0.8 * update_norm(began, first)


def test_own_model_is_evaluated_beside_the_global_one_at_its_own_threshold(config: SiteConfig) -> None:
    site = Site.open(config, study(personalization={"method": "ditto"}))
    replies = alone(site, run="own", rounds=2)

    reply = evaluate(site, replies[0].state, round=1, run="own")

    model = build_model(site.study.model, num_sequences=3)
    set_state(model, personal_state(site, "own", round=1))
    bins = bins_of(site.study)
    histogram = SiteStatistics.from_margins(*site._scores(model, "validation"), bins=bins, threshold=None).histogram
    threshold = choose_threshold(histogram, ThresholdRule("sensitivity", 0.9), bins).threshold
    assert reply.personal_choice == OwnChoice(1, threshold, "")
    assert reply.choice is None
    assert reply.personal == site._shown(site._scores(model, "test"), "test", threshold=threshold)
    set_state(model, replies[0].state)
    assert reply.evaluation == site._shown(site._scores(model, "test"), "test", threshold=0.0)


@pytest.mark.parametrize("method", ["ditto", "fine_tune"])
def test_site_that_never_trains_has_no_model_of_its_own(method: str, config: SiteConfig) -> None:
    agreed = study(personalization={"method": method}, participation={"held_out": ["a"]})

    reply = evaluate(Site.open(config, agreed), initial(agreed), round=2, run="held out")

    assert reply.personal is None


def test_own_model_of_a_site_that_has_not_trained_yet_is_the_global_one(config: SiteConfig) -> None:
    agreed = study(personalization={"method": "ditto"})

    reply = evaluate(Site.open(config, agreed), initial(agreed), round=2, run="late")

    assert reply.personal is not None
    assert reply.personal.statistics is not None
    assert reply.evaluation.statistics is not None
    assert reply.personal.statistics.histogram == reply.evaluation.statistics.histogram


def test_without_own_models_nothing_is_said_of_one(config: SiteConfig) -> None:
    agreed = study()

    assert evaluate(Site.open(config, agreed), initial(agreed), round=1, run="none").personal is None


# --- fine-tuning ------------------------------------------------------------------------------------------------------

FINE_TUNE = {"method": "fine_tune", "fine_tune_epochs": 2, "fine_tune_learning_rate": 0.01}


def fine_tuned(site: Site, run: str, *, round: int) -> dict[str, Array] | None:
    return SiteMemory(site.config.cache, run=run, study_digest=site.study.digest).read("fine-tuned", round=round)


def test_fine_tuning_changes_the_last_block_alone_and_is_the_same_when_redone(config: SiteConfig) -> None:
    site = Site.open(config, study(model=BATCH, personalization=FINE_TUNE))
    state = train(site, initial(site.study), round=1, run="tuned").state

    replies = [evaluate(site, state, round=1, run=run) for run in ("tuned", "anew")]

    one, other = (fine_tuned(site, run, round=1) for run in ("tuned", "anew"))
    assert one is not None
    assert other is not None
    assert state_digest(one) == state_digest(other)
    model = build_model(site.study.model, num_sequences=3)
    names = last_block_names(model, site.study.model)
    assert {name.partition(".")[0] for name in names} == {"layer4", "fc"}
    assert one.keys() - {"origin"} == names
    assert update_norm({name: one[name] for name in names}, {name: state[name] for name in names}) > 0
    set_state(model, {**state, **{name: one[name] for name in names}})
    choice = replies[0].personal_choice
    assert choice is not None
    scores = site._scores(model, "test")
    assert replies[0].personal == replies[1].personal == site._shown(scores, "test", threshold=choice.threshold)
    assert replies[0].personal != replies[0].evaluation


def test_the_test_is_scored_by_the_model_that_was_kept_and_not_by_another_fine_tuning(config: SiteConfig) -> None:
    site = Site.open(config, study(personalization=FINE_TUNE))
    state = train(site, initial(site.study), round=1, run="kept").state
    before = evaluate(site, state, round=1, run="kept")
    memory = SiteMemory(config.cache, run="kept", study_digest=site.study.digest)
    kept = memory.read("fine-tuned", round=1)
    assert kept is not None
    memory.keep("fine-tuned", kept | {"fc.bias": kept["fc.bias"] + np.array([0, 50], dtype=np.float32)}, round=1)

    again = evaluate(site, state, round=1, run="kept")
    anew = evaluate(site, initial(site.study), round=1, run="kept")  # a state that it was not made from

    assert before.personal is not None
    assert again.personal is not None
    assert anew.personal is not None
    assert again.personal != before.personal
    assert anew.personal != again.personal
    assert again.evaluation == before.evaluation


# --- SCAFFOLD ---------------------------------------------------------------------------------------------------------

SGD = {
    "optimizer": "sgd",
    "momentum": 0.0,
    "learning_rate": 0.02,
    "local_steps": 3,
    "local_epochs": None,
}


def test_scaffold_with_one_site_is_plain_sgd(config: SiteConfig) -> None:
    plain = alone(Site.open(config, study(training=SGD)), run="plain")
    site = Site.open(config, study(training=SGD | {"control_variates": True}))
    state, control = initial(site.study), {name: np.zeros_like(a) for name, a in initial(site.study).items()}

    for expected in plain:
        reply = train(site, state, round=expected.round, run="scaffold", control=control)
        assert reply.control is not None
        if expected.round < 3:  # c and c_i are equal to the last bit
            assert state_digest(reply.state) == state_digest(expected.state)
        assert update_norm(reply.state, expected.state) < 1e-5 * update_norm(reply.state, initial(site.study))
        state = dict(reply.state)
        control = dict(reply.control)

    assert update_norm(control, {name: np.zeros_like(array) for name, array in control.items()}) > 0


def test_the_control_variate_of_a_round_that_is_run_again_begins_where_it_began(config: SiteConfig) -> None:
    site = Site.open(config, study(training=SGD | {"control_variates": True}))
    zeros = {name: np.zeros_like(array) for name, array in initial(site.study).items()}
    train(site, initial(site.study), round=1, run="twice", control=zeros)

    one, other = (train(site, initial(site.study), round=2, run="twice", control=zeros) for _ in range(2))

    assert one.control is not None
    assert other.control is not None
    assert state_digest(one.control) == state_digest(other.control)
    assert state_digest(one.state) == state_digest(other.state)


def test_control_variates_are_of_parameters_that_leave(config: SiteConfig) -> None:
    site = Site.open(config, study(training=SGD | {"control_variates": True}, model=BATCH | {"norm": "silobn"}))
    zeros = {name: np.zeros_like(array) for name, array in initial(site.study).items()}

    reply = train(site, initial(site.study), round=1, run="silo", control=zeros)

    assert reply.control is not None
    assert reply.control.keys() == reply.state.keys()
    with pytest.raises(ProtocolError, match=r"has 'bn1.running_mean' beyond"):
        train(site, initial(site.study), round=1, run="silo", control=zeros | {"bn1.running_mean": np.zeros(8)})


# --- unequal classes --------------------------------------------------------------------------------------------------


def test_logit_adjustment_trains_another_model_and_evaluates_raw_logits(config: SiteConfig) -> None:
    plain = Site.open(config, study(training={"class_weighting": "none"}))
    adjusted = Site.open(config, study(training={"class_weighting": "logit_adjusted"}))
    state = initial(plain.study)

    even = train(adjusted, state, round=1, run="r", class_counts=(4, 4))
    rare = train(adjusted, state, round=1, run="r", class_counts=(36, 4))
    expected = train(plain, state, round=1, run="r")

    # The same offset for both classes is none; the evaluation of what arrived knows no offset.
    assert even.train_loss == pytest.approx(expected.train_loss, rel=1e-5)
    assert rare.train_loss != pytest.approx(expected.train_loss, rel=1e-2)
    assert rare.evaluation == expected.evaluation


def test_logit_adjustment_without_a_class_is_refused(config: SiteConfig) -> None:
    site = Site.open(config, study(training={"class_weighting": "logit_adjusted"}))

    with pytest.raises(TrainingError, match=r"have \[9, 0\] training patients by class, expected some of each"):
        train(site, initial(site.study), round=1, run="r", class_counts=(9, 0))


def test_site_with_one_class_has_nothing_to_balance_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    splits = (("train", 6, 0), ("validation", 2, 2), ("test", 2, 2))
    one_class = read_site_config(write_tiny_hospital(tmp_path, "b", splits=splits))
    settings = {"class_weighting": "none", "sampling": "class_balanced"}

    with caplog.at_level(logging.WARNING):
        balanced = alone(Site.open(one_class, study(training=settings)), run="r", rounds=1)
    shuffled = alone(Site.open(one_class, study(training={"class_weighting": "none"})), run="r", rounds=1)

    assert state_digest(balanced[0].state) == state_digest(shuffled[0].state)
    assert "b has training exams of one class alone" in caplog.text


# --- every site by itself ---------------------------------------------------------------------------------------------


def test_site_that_trains_by_itself_is_a_federation_of_one_and_sends_no_state(config: SiteConfig) -> None:
    federated = Site.open(config, study())
    replies = alone(federated, run="one")
    site = Site.open(config, study(aggregation={"method": "local"}))

    own = [train(site, initial(site.study), round=round, run="local") for round in range(1, ROUNDS + 1)]

    assert [dict(reply.state) for reply in own] == [{}] * ROUNDS
    assert [reply.evaluation for reply in own] == [reply.evaluation for reply in replies]
    assert [reply.train_loss for reply in own] == [reply.train_loss for reply in replies]
    for reply in replies[1:]:
        expected = evaluate(federated, reply.state, round=reply.round, run="one").evaluation.statistics
        found = evaluate(site, initial(site.study), round=reply.round, run="local").evaluation.statistics
        assert found is not None
        assert expected is not None
        assert (found.histogram, found.loss_sum) == (expected.histogram, expected.loss_sum)


def test_site_that_trains_by_itself_is_tested_with_the_round_and_the_threshold_that_it_chose(
    config: SiteConfig,
) -> None:
    site = Site.open(config, study(aggregation={"method": "local"}, rounds=4, training={"learning_rate": 0.05}))
    state = initial(site.study)
    aucs, tested = [], []
    for round in (1, 2, 3, 4):
        train(site, state, round=round, run="best")
        validated = site.evaluate(_ask(site, state, "validation", round=round)).evaluation.statistics
        assert validated is not None
        aucs.append((pooled_auc(validated.histogram).estimate.value or -1.0, -validated.loss_sum))
        tested.append(evaluate(site, state, round=round, run="best").evaluation.statistics)
    best = 1 + aucs.index(max(aucs))

    reply = evaluate(site, state, round=4, run="best", own_round=True)

    assert reply.choice is not None
    assert (reply.choice.round, reply.choice.reason) == (best, "")
    assert reply.evaluation.statistics == tested[best - 1]
    assert reply.evaluation.statistics is not None
    assert reply.evaluation.statistics.confusion is not None


def _ask(site: Site, state: ModelState, split: Literal["validation", "test"], *, round: int) -> EvaluateTask:
    return EvaluateTask(
        site.study, split, None, state, run="best", round=round, class_weights=(1.0, 1.0), class_counts=(12, 4)
    )


def test_threshold_chosen_on_few_patients_is_used_and_not_shown(tmp_path: Path) -> None:
    splits = (("train", 4, 3), ("validation", 2, 2), ("test", 3, 3))
    few = read_site_config(write_tiny_hospital(tmp_path, "few", splits=splits))
    rules = few.disclosure.model_copy(update={"min_cell": 3})

    site = Site.open(few.model_copy(update={"disclosure": rules}), study(aggregation={"method": "local"}))
    train(site, initial(site.study), round=1, run="few")
    reply = evaluate(site, initial(site.study), round=1, run="few")

    assert reply.choice == OwnChoice(1, None, "withheld")
    assert reply.evaluation.statistics is not None
    assert reply.evaluation.statistics.confusion is not None


def test_site_says_that_a_file_of_its_own_layers_was_unreadable(config: SiteConfig) -> None:
    site = Site.open(config, study(model=BATCH | {"norm": "fedbn"}))
    replies = alone(site, run="damaged", rounds=2)
    for path in (config.cache / "kept").glob("damaged-*/own-*.safetensors"):
        path.write_bytes(b"nothing that can be read")

    again = train(site, replies[-1].state, round=3, run="damaged")

    assert [reply.damaged for reply in replies] == [(), ()]
    assert again.damaged == ("own",)


# --- what stays -------------------------------------------------------------------------------------------------------


def test_all_that_is_kept_is_for_its_owner_alone_and_names_nobody(config: SiteConfig) -> None:
    site = Site.open(config, study(model=BATCH | {"norm": "fedbn"}, personalization={"method": "ditto"}))
    alone(site, run="private", rounds=1)

    files = [path for path in (config.cache / "kept").rglob("*") if path.is_file()]
    assert len(files) >= 2
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    patients = {exam.patient_id for exam in site.cohort.cohort.exams}
    assert not [path for path in files if patients & set(path.stem.split("-"))]


def test_two_processes_worth_of_sites_share_nothing_but_the_cache(config: SiteConfig) -> None:
    agreed = study(model=BATCH | {"norm": "fedbn"})
    first = train(Site.open(config, agreed), initial(agreed), round=1, run="engines")

    kept_open = Site.open(config, agreed)
    one = train(kept_open, first.state, round=2, run="engines")
    torch.rand(5)
    other = train(Site.open(config, agreed), first.state, round=2, run="engines")

    assert state_digest(one.state) == state_digest(other.state)
    assert get_state(build_model(agreed.model, num_sequences=3)).keys() > one.state.keys()
