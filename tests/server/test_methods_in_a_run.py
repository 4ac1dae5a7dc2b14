"""Whole runs by other methods: their identities, what travels, what is refused, and the same bytes after a kill."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from client.app import app as client_app
from client.config import read_site_config
from client.site_memory import SiteMemory
from common.errors import ConfigError
from common.model_state import decode_state, state_digest
from common.models import local_names
from common.record_values import PROTOCOL
from server.federation import Federation, QuorumError
from server.global_state import LOCAL_MODELS, initial_global_state, trained_names
from server.report import write_report
from server.run_folder import RunFolder
from server.run_status import read_status
from simulations.engines.in_process import InProcessGrid
from tests.killed_run import Moment, carry_on_in_a_process
from tests.server.test_resume import require_same_result
from tests.tiny_federation import (
    Act,
    Answer,
    FaultyClientApp,
    Run,
    begin_run,
    carry_on,
    run_federation,
    write_hospitals,
)
from tests.tiny_hospitals import study_text

SPLITS = (("train", 3, 2), ("validation", 2, 2), ("test", 2, 2))
PLAIN_SGD = {"optimizer": "sgd", "momentum": 0.0, "local_steps": 2, "local_epochs": None, "learning_rate": 0.05}
SCAFFOLD = PLAIN_SGD | {"control_variates": True}


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_hospitals(tmp_path_factory.mktemp("hospitals"), "a", "b", "c", splits=SPLITS)


@pytest.fixture(scope="module")
def plain(sites: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_federation(tmp_path_factory.mktemp("plain") / "run", study_text(), sites)


def initial_digest(run: Run) -> str:
    return state_digest(initial_global_state(run.folder.read_study()))


# --- identities -------------------------------------------------------------------------------------------------------


def test_fedavgm_with_rate_one_and_without_momentum_is_fedavg(
    plain: Run, sites: dict[str, Path], tmp_path: Path
) -> None:
    same = {"method": "fedavgm", "momentum": 0.0, "server_learning_rate": 1.0}

    run = run_federation(tmp_path / "run", study_text(aggregation=same), sites)

    assert run.digests == plain.digests


def test_momentum_makes_another_model_from_the_second_round_on(
    plain: Run, sites: dict[str, Path], tmp_path: Path
) -> None:
    run = run_federation(tmp_path / "run", study_text(aggregation={"method": "fedavgm"}), sites)

    assert run.digests[0] == plain.digests[0]
    assert run.digests[1] != plain.digests[1]
    assert run.record["outcome"] == "COMPLETE"


def test_ditto_leaves_the_global_model_as_it_is_and_has_figures_of_its_own(
    plain: Run, sites: dict[str, Path], tmp_path: Path
) -> None:
    run = run_federation(tmp_path / "run", study_text(personalization={"method": "ditto"}), sites)

    assert run.digests == plain.digests
    assert run.record["outcome"] == "COMPLETE"
    for name in ("validation", "test"):
        shared, own = (run.record["figures"][each]["figures"] for each in (name, f"personal_{name}"))
        assert shared == plain.record["figures"][name]["figures"]
        assert own["statistics"]["num_patients"] == shared["statistics"]["num_patients"] == [6, 6]
        assert own["pooled"]["at_threshold"] is not None
        assert own["pooled"]["auc"]["estimate"]["value"] is None
        assert own["within_site_auc"]["estimate"]["value"] is not None
    point = run.record["operating_point"]
    assert sorted(point["personal"]["per_site"]) == ["a", "b", "c"]
    assert point["personal"]["rule"] == point["rule"] == "sensitivity 0.9"
    assert {name: point[name] for name in point if name != "personal"} == plain.record["operating_point"]


def test_record_of_a_study_without_own_models_does_not_name_them(plain: Run) -> None:
    assert sorted(plain.record["figures"]) == ["test", "validation"]
    assert sorted(plain.record["operating_point"]) == ["reason", "rule", "threshold"]
    assert "no_model" not in plain.record


# --- after a kill -----------------------------------------------------------------------------------------------------

RESUMED: dict[str, tuple[dict[str, Any], Moment]] = {
    "FedYogi and adaptive FedProx, before the memory of round 2": (
        {
            "aggregation": {"method": "fedyogi"},
            "training": {"fedprox_adaptive": True, "fedprox_mu": 0.01, "learning_rate": 0.1},
        },
        Moment("before", "memory-square-00002.safetensors"),
    ),
    "SCAFFOLD, after the memory of round 2": (
        {"training": SCAFFOLD},
        Moment("after", "memory-control-00002.safetensors"),
    ),
    "SCAFFOLD, between the sites' variates of round 2": (
        {"training": SCAFFOLD},
        Moment("before", "memory-control-b-00002.safetensors"),
    ),
    "FedAvgM, in the middle of round 3": (
        {"aggregation": {"method": "fedavgm"}},
        Moment("call", "client.training:augment", 14),
    ),
}
"""Three sites, two steps a round each."""


@pytest.mark.parametrize(("changes", "moment"), RESUMED.values(), ids=RESUMED)
def test_killed_run_ends_with_the_bytes_of_one_that_was_not(
    changes: dict[str, Any], moment: Moment, sites: dict[str, Path], tmp_path: Path
) -> None:
    study = study_text(rounds=3, **changes)
    uninterrupted = run_federation(tmp_path / "whole" / "run", study, sites)
    folder = begin_run(tmp_path / "killed" / "run", study, sites)

    killed = carry_on_in_a_process(folder, sites, kill=moment)
    assert not folder.record.exists()
    ended = carry_on_in_a_process(folder, sites)

    assert (killed, ended) == (-9, 0)
    require_same_result(Run(folder), uninterrupted)
    digests = [json.loads(run.progress.read_text())["memory_digests"] for run in (folder, uninterrupted.folder)]
    assert digests[0] == digests[1] != {}


# --- what a round refuses ---------------------------------------------------------------------------------------------


def fail(message: Message, answer: Answer) -> Message:
    raise ValueError("broken")


def test_trimmed_mean_of_too_few_replies_is_no_mean(sites: dict[str, Path], tmp_path: Path) -> None:
    study = study_text(aggregation={"method": "trimmed_mean"}, participation={"min_sites": 3})

    with pytest.raises(QuorumError, match=r"2 of 3 sites gave a usable reply in round 2, the study needs 3"):
        run_federation(tmp_path / "run", study, sites, app=FaultyClientApp("b", fail, only_round=2))

    record = Run(RunFolder(tmp_path / "run")).record
    assert (record["outcome"], record["rounds_done"]) == ("INVALID", 1)


def test_multi_krum_of_too_few_sites_ends_at_joining(sites: dict[str, Path], tmp_path: Path) -> None:
    study = study_text(aggregation={"method": "multi_krum"}, participation={"min_sites": 5})

    with pytest.raises(QuorumError, match="3 of 3 sites joined, the study needs 5"):
        run_federation(tmp_path / "run", study, sites)


def test_sites_that_multi_krum_did_not_choose_weigh_nothing_in_the_record(tmp_path: Path) -> None:
    tiny = (("train", 2, 2), ("validation", 1, 1), ("test", 1, 1))
    five = write_hospitals(tmp_path, *"abcde", splits=tiny)
    study = study_text(rounds=1, aggregation={"method": "multi_krum"}, participation={"min_sites": 5})

    run = run_federation(tmp_path / "run", study, five)

    weights = [site["weight"] for site in run.rounds[0]["sites"].values()]
    assert sorted(weights) == [0.0, 0.0, 0.0, 4.0, 4.0]
    assert {site["status"] for site in run.rounds[0]["sites"].values()} == {"accepted"}


def with_control(spoil: Any) -> Act:
    def act(message: Message, answer: Answer) -> Message:
        reply = answer()
        arrays = {name: array.numpy().copy() for name, array in reply.content.array_records["control"].items()}
        spoil(arrays)
        control = ArrayRecord({name: FlowerArray(array) for name, array in arrays.items()})
        return Message(RecordDict({**reply.content, "control": control}), reply_to=message)

    return act


def with_nan(arrays: dict[str, Any]) -> None:
    arrays["conv1.weight"].flat[0] = np.nan


def with_one_array_less(arrays: dict[str, Any]) -> None:
    del arrays["fc.bias"]


def a_million_times_as_large(arrays: dict[str, Any]) -> None:
    arrays.update({name: array * 1e6 for name, array in arrays.items()})


def without_control(message: Message, answer: Answer) -> Message:
    reply = answer()
    del reply.content["control"]
    return reply


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        pytest.param(with_control(with_nan), "control variate: conv1.weight holds NaN or infinite numbers", id="NaN"),
        pytest.param(with_control(with_one_array_less), "control variate: the model state lacks 'fc.bias'", id="name"),
        pytest.param(with_control(a_million_times_as_large), "its control variate has norm", id="norm"),
        pytest.param(without_control, "the message holds no control variate", id="none"),
    ],
)
def test_broken_control_variate_is_refused_with_its_reply(
    act: Act, reason: str, sites: dict[str, Path], tmp_path: Path
) -> None:
    study = study_text(rounds=1, training=SCAFFOLD, participation={"min_sites": 2})

    run = run_federation(tmp_path / "run", study, sites, app=FaultyClientApp("b", act))

    site = run.rounds[0]["sites"]["b"]
    assert site["status"] == "refused"
    assert reason in site["reason"]
    control = run.folder.memory(1, "control")
    assert all(np.isfinite(array).all() for array in decode_state(control.read_bytes(), origin="c").values())


def test_control_of_the_server_is_the_mean_of_the_sites_over_all_that_are_expected(
    sites: dict[str, Path], tmp_path: Path
) -> None:
    controls: list[dict[str, Any]] = []

    class Recorder(ClientApp):
        def __call__(self, message: Message, context: Context) -> Message:
            reply = client_app(message, context)
            if message.metadata.message_type == "train":
                controls.append({n: a.numpy() for n, a in reply.content.array_records["control"].items()})
            return reply

    study = study_text(rounds=1, training=SCAFFOLD)
    folder = begin_run(tmp_path / "run", study.replace("join_timeout_s: 60", "join_timeout_s: 0.3"), sites)
    run = carry_on(folder, {name: sites[name] for name in "ab"}, app=Recorder())

    control = decode_state(run.folder.memory(1, "control").read_bytes(), origin="c")
    assert set(control) == trained_names(run.folder.read_study())
    for name, array in control.items():
        np.testing.assert_allclose(array, sum(own[name] for own in controls) / 3, rtol=1e-5, atol=1e-8)


def lose(message: Message, answer: Answer) -> Message:
    answer()
    raise ValueError("the site has trained, and its reply does not arrive")


def controls_of_sites(sites: Mapping[str, Path], folder: RunFolder, *, round: int) -> dict[str, dict[str, Any]]:
    """What each site itself keeps as its control variate after a round."""
    found: dict[str, dict[str, Any]] = {}
    for name, config in sites.items():
        memory = SiteMemory(
            read_site_config(config).cache,
            run=folder.name,
            study_digest=folder.read_study().digest,
            run_id=json.loads(folder.progress.read_text())["run_id"],
        )
        values = memory.read("control", round=round)
        assert values is not None
        found[name] = values
    return found


def stored(folder: RunFolder, part: str, *, round: int) -> dict[str, Any]:
    return decode_state(folder.memory(round, part).read_bytes(), origin=part)


def require_mean(control: Mapping[str, Any], own: Mapping[str, Mapping[str, Any]]) -> None:
    for name, array in control.items():
        mean = sum(values[name].astype(np.float64) for _, values in sorted(own.items())) / len(own)
        np.testing.assert_array_equal(array, mean.astype(array.dtype))


@pytest.mark.parametrize("lost_round", [1, 2])
def test_control_is_the_mean_of_the_sites_again_when_a_lost_reply_is_followed_by_another(
    lost_round: int, sites: dict[str, Path], tmp_path: Path
) -> None:
    study = study_text(rounds=lost_round + 1, training=SCAFFOLD, participation={"min_sites": 2})

    run = run_federation(tmp_path / "run", study, sites, app=FaultyClientApp("b", lose, only_round=lost_round))

    status = [record["sites"]["b"]["status"] for record in run.rounds]
    assert status == ["accepted"] * (lost_round - 1) + ["failed", "accepted"]
    own = controls_of_sites(sites, run.folder, round=lost_round + 1)
    require_mean(stored(run.folder, "control", round=lost_round + 1), own)
    assert len({state_digest(values) for values in own.values()}) == 3


def test_while_a_reply_is_lost_the_server_goes_by_the_last_control_that_came(
    sites: dict[str, Path], tmp_path: Path
) -> None:
    study = study_text(rounds=2, name="lost-at-the-end", training=SCAFFOLD, participation={"min_sites": 2})

    run = run_federation(tmp_path / "run", study, sites, app=FaultyClientApp("b", lose, only_round=2))

    first, last = (controls_of_sites(sites, run.folder, round=round) for round in (1, 2))
    known = last | {"b": first["b"]}
    for site, values in known.items():
        assert state_digest(stored(run.folder, f"control-{site}", round=2)) == state_digest(values)
    require_mean(stored(run.folder, "control", round=2), known)
    assert state_digest(first["b"]) != state_digest(last["b"])


# --- layers that stay with the sites ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "num_names"), [("fedbn", 12 * 5), ("silobn", 12 * 3)])
def test_no_layer_that_stays_at_a_site_is_in_a_message_a_checkpoint_or_a_model(
    norm: str, num_names: int, sites: dict[str, Path], tmp_path: Path
) -> None:
    seen: set[str] = set()

    class Recorder(ClientApp):
        def __call__(self, message: Message, context: Context) -> Message:
            reply = client_app(message, context)
            for content in (message.content, reply.content):
                for arrays in content.array_records.values():
                    seen.update(arrays)
            return reply

    run = run_federation(tmp_path / "run", study_text(model={"norm": norm}), sites, app=Recorder())

    local = local_names(run.folder.read_study().model, num_sequences=3)
    assert len(local) == num_names
    assert run.record["outcome"] == "COMPLETE"
    assert seen
    assert not seen & local
    with safetensors.safe_open(run.folder.model / "best.safetensors", "np") as file:
        assert not set(file.keys()) & local
        absent = json.loads(file.metadata()["gliorn"])["absent"]
    assert absent["names"] == sorted(local)
    assert absent["why"].startswith(f"norm {norm}: every site keeps its own")
    assert not set(decode_state(run.folder.state(2).read_bytes(), origin="state")) & local


def test_reply_with_a_layer_that_should_stay_is_refused(sites: dict[str, Path], tmp_path: Path) -> None:
    def act(message: Message, answer: Answer) -> Message:
        reply = answer()
        arrays = dict(reply.content.array_records["state"])
        arrays["bn1.running_mean"] = FlowerArray(np.zeros(8, dtype=np.float32))
        return Message(RecordDict({**reply.content, "state": ArrayRecord(arrays)}), reply_to=message)

    run = run_federation(
        tmp_path / "run", study_text(rounds=1, model={"norm": "fedbn"}), sites, app=FaultyClientApp("b", act)
    )

    assert "has 'bn1.running_mean' beyond the study's model" in run.rounds[0]["sites"]["b"]["reason"]


# --- every site by itself ---------------------------------------------------------------------------------------------


def test_local_training_has_no_global_model_and_is_evaluated_site_by_site(
    sites: dict[str, Path], tmp_path: Path
) -> None:
    study = study_text(rounds=3, training={"learning_rate": 0.01}, aggregation={"method": "local"})

    run = run_federation(tmp_path / "run", study, sites)

    assert run.record["outcome"] == "COMPLETE"
    assert run.digests == [initial_digest(run)] * 3
    assert run.record["no_model"] == LOCAL_MODELS
    assert run.record["models"] == {}
    assert list(run.folder.model.iterdir()) == []
    for record in run.rounds:
        for site in record["sites"].values():
            assert (site["status"], site["weight"], site["update_norm"], site["received_bytes"]) == (
                *("accepted", None, None),
                0,
            )
    assert sorted(run.record["selection"]["rounds"]) == ["a", "b", "c"]
    assert sorted(run.record["operating_point"]["per_site"]) == ["a", "b", "c"]
    assert run.record["operating_point"]["threshold"] is None
    for name in ("validation", "test"):
        figures = run.record["figures"][name]
        assert figures["figures"]["pooled"]["auc"]["estimate"]["value"] is None
        assert figures["figures"]["within_site_auc"]["estimate"]["value"] is not None
        assert figures["figures"]["pooled"]["at_threshold"] is not None
        assert figures["roc"] == []
    assert {record["validation"]["kind"] for record in run.rounds} == {"within_site"}
    # The sites' models learn although the state they are sent stays the initial one.
    losses = [record["validation"]["loss"] for record in run.rounds]
    assert losses[0] != losses[1] != losses[2]


def test_a_second_run_of_the_same_name_finds_nothing_of_the_first_at_a_site(
    sites: dict[str, Path], tmp_path: Path
) -> None:
    def is_away(message: Message, answer: Answer) -> Message:
        return Message(
            RecordDict({"reply": ConfigRecord({"protocol": PROTOCOL, "failure": "internal"})}), reply_to=message
        )

    text = study_text(rounds=2, personalization={"method": "ditto"}, participation={"min_sites": 2})
    run_federation(tmp_path / "first" / "run", text, sites)
    late = FaultyClientApp("c", is_away)  # takes part in no round, and is tested

    again = run_federation(tmp_path / "second" / "run", text, sites, app=late)

    shared, own = (again.record["figures"][name]["figures"]["per_site"]["c"] for name in ("test", "personal_test"))
    assert own["auc"] == shared["auc"], "its own model is the global one, since it has not trained in this run"


def test_damaged_file_of_own_layers_is_in_record_report_and_status(sites: dict[str, Path], tmp_path: Path) -> None:
    def after_damage(message: Message, answer: Answer) -> Message:
        for path in (read_site_config(sites["b"]).cache / "kept").glob("damaged-*/own-*.safetensors"):
            path.write_bytes(b"nothing that can be read")
        return answer()

    study = study_text(rounds=3, model={"norm": "fedbn"})
    app = FaultyClientApp("b", after_damage, only_round=2)

    run = run_federation(tmp_path / "damaged", study, sites, app=app)

    said = "b went on from older values of its own layers, or began them anew, in round 2: its file was unreadable"
    problems = run.record["problems"]
    assert problems[0] == said
    # The evaluation of a round whose file was damaged meets it as well.
    assert all(problem.startswith("b went on from older values of its own layers") for problem in problems)
    assert read_status(run.folder).problems == problems
    assert run.record["outcome"] == "DEGRADED"
    write_report(run.folder)
    assert said in run.folder.report.read_text()


# --- own models -------------------------------------------------------------------------------------------------------


def with_personal(**changes: Any) -> Act:
    def act(message: Message, answer: Answer) -> Message:
        reply = answer()
        parts: dict[str, Any] = dict(reply.content)
        for part, change in changes.items():
            name = part.replace("_", "-")
            parts[name] = change(dict(parts[name])) if change is not None else None
        return Message(RecordDict({n: part for n, part in parts.items() if part is not None}), reply_to=message)

    return act


def ten_times_the_patients(values: dict[str, Any]) -> MetricRecord:
    return MetricRecord({name: [10 * count for count in counts] for name, counts in values.items()})


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        pytest.param(
            with_personal(personal_statistics=ten_times_the_patients),
            "counted (20, 20) patients, registered (2, 2)",
            id="patients of others",
        ),
        pytest.param(
            with_personal(personal=lambda values: ConfigRecord(values | {"cohort": "0" * 64})),
            "the test patients are not those registered before the first round",
            id="another cohort",
        ),
        pytest.param(
            with_personal(personal=lambda values: ConfigRecord(values | {"split": "validation"})),
            "evaluated the validation patients, expected test",
            id="another split",
        ),
        pytest.param(
            with_personal(personal=None, personal_statistics=None),
            "the reply holds no evaluation of the site's own model, which the study asks for",
            id="none",
        ),
    ],
)
def test_evaluation_of_an_own_model_is_screened_like_that_of_the_global_one(
    act: Act, reason: str, sites: dict[str, Path], tmp_path: Path
) -> None:
    study = study_text(rounds=1, personalization={"method": "ditto"})
    app = FaultyClientApp("b", act, message_type="evaluate")
    app._group = "test"

    run = run_federation(tmp_path / "run", study, sites, app=app)

    assert run.record["outcome"] == "DEGRADED"
    for name in ("test", "personal_test"):
        assert reason in run.record["figures"][name]["missing"]["b"]
        assert sorted(run.record["figures"][name]["figures"]["per_site"]) == ["a", "c"]


# --- sites that are held out ------------------------------------------------------------------------------------------


def test_site_that_is_held_out_never_trains_and_is_tested(sites: dict[str, Path], tmp_path: Path) -> None:
    asked: list[tuple[str, str]] = []

    class Recorder(ClientApp):
        def __call__(self, message: Message, context: Context) -> Message:
            site = Path(str(context.node_config["site-config"])).parent.name
            asked.append((site, message.metadata.message_type))
            return client_app(message, context)

    study = study_text(participation={"held_out": ["c"]}, personalization={"method": "ditto"})
    two = {name: sites[name] for name in "ab"}
    without = run_federation(tmp_path / "two" / "run", study_text(), two)

    run = run_federation(tmp_path / "run", study, sites, app=Recorder())

    assert run.record["outcome"] == "COMPLETE"
    assert run.record["problems"] == []
    assert [kind for site, kind in asked if site == "c"] == ["query.describe", "evaluate"]
    assert [sorted(record["sites"]) for record in run.rounds] == [["a", "b"]] * 2
    assert run.digests == without.digests
    figures: Mapping[str, Any] = run.record["figures"]
    assert sorted(figures["validation"]["figures"]["per_site"]) == ["a", "b"]
    assert sorted(figures["test"]["figures"]["per_site"]) == ["a", "b", "c"]
    assert sorted(figures["personal_test"]["figures"]["per_site"]) == ["a", "b"]
    assert figures["personal_test"]["missing"]["c"].startswith("held out: ")


@pytest.mark.parametrize("norm", ["group", "fedbn"])
def test_hospital_with_test_patients_alone_can_be_held_out(norm: str, sites: dict[str, Path], tmp_path: Path) -> None:
    only_test = write_hospitals(tmp_path / "new", "d", splits=(("test", 3, 2),))
    study = study_text(rounds=1, participation={"held_out": ["d"]}, model={"norm": norm})

    run = run_federation(tmp_path / "run", study, sites | only_test)

    assert run.record["problems"] == []
    assert run.record["figures"]["test"]["figures"]["per_site"]["d"]["num_necrosis"] == 2


def test_hospital_with_test_patients_alone_cannot_train(sites: dict[str, Path], tmp_path: Path) -> None:
    only_test = write_hospitals(tmp_path / "new", "d", splits=(("test", 3, 2),))

    run = run_federation(tmp_path / "run", study_text(rounds=1), {"a": sites["a"], "b": sites["b"]} | only_test)

    assert run.record["not_joined"] == {"d": "cannot take part: config"}


def test_name_that_is_held_out_and_not_expected_is_refused(sites: dict[str, Path], tmp_path: Path) -> None:
    study = study_text(participation={"held_out": ["c", "z"]})
    folder = begin_run(tmp_path / "run", study, sites)

    with pytest.raises(
        ConfigError, match="held_out names z, which this run does not expect; name sites out of a, b, c"
    ):
        Federation(InProcessGrid(client_app, {}, workers=1), folder, now=lambda: pytest.fail("no clock is needed"))


# --- adaptive FedProx -------------------------------------------------------------------------------------------------


def test_strength_of_fedprox_is_in_the_record_of_every_round_and_follows_the_loss(
    sites: dict[str, Path], tmp_path: Path
) -> None:
    wild = {"learning_rate": 0.1, "schedule": "constant"}
    training = {"fedprox_adaptive": True, "fedprox_mu": 0.5, **wild}

    run = run_federation(tmp_path / "run", study_text(rounds=5, training=training), sites)

    losses = [record["validation"]["loss"] for record in run.rounds]
    strengths = [record["fedprox_mu"] for record in run.rounds]
    assert strengths[:2] == [0.5, 0.5]
    assert len(set(strengths)) > 1
    for before, after, old, new in zip(losses, losses[1:], strengths[1:], strengths[2:], strict=False):
        assert new in (old, old / 2 if after < before else min(2 * old, 1.0))
