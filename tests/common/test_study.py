"""The study: every fault is named with its line and a way out, and equal settings have equal digests."""

import hashlib
from collections.abc import Iterator, Mapping

import pytest
import yaml

from common.errors import ConfigError
from common.study import ADDED_SETTINGS, Study, parse_study
from tests.tiny_hospitals import STUDY, study_text


def study(text: str) -> Study:
    return parse_study(text, origin="study.yaml")


def faults_of(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        study(text)
    return str(caught.value)


def line_of(text: str, start: str) -> int:
    return next(number for number, line in enumerate(text.splitlines(), start=1) if line.lstrip().startswith(start))


BROKEN: dict[str, tuple[dict[str, object], str, str]] = {
    "unknown setting": ({"training": {"optimiser": "sgd"}}, "optimiser", "did you mean 'optimizer'?"),
    "unknown section": (
        {"privacy": {"epsilon": 1.0}},
        "privacy",
        "known here: aggregation, augmentation, communication",
    ),
    "unknown choice": ({"training": {"optimizer": "adam"}}, "optimizer", "found 'adam', input should be 'adamw' or"),
    "text for a number": ({"rounds": "many"}, "rounds", "found 'many', input should be a valid integer"),
    "number as a text": ({"training": {"learning_rate": "0.1"}}, "learning_rate", "found '0.1', input should be a"),
    "yes for a number": ({"seed": True}, "seed", "found True, input should be a valid integer"),
    "fraction for a whole number": ({"rounds": 2.5}, "rounds", "found 2.5, input should be a valid integer"),
    "out of range": ({"rounds": 0}, "rounds", "input should be greater than or equal to 1"),
    "not a number": ({"training": {"learning_rate": float("nan")}}, "learning_rate", "should be a finite number"),
    "infinite": ({"participation": {"round_timeout_s": float("inf")}}, "round_timeout_s", "should be a finite number"),
    "forgotten": ({"training": {"batch_size": None}}, "batch_size", "found None, input should be a valid integer"),
    "both lengths of a round": (
        {"training": {"local_steps": 3}},
        "training",
        "give exactly one of local_epochs and local_steps",
    ),
    "no length of a round": (
        {"training": {"local_epochs": None}},
        "training",
        "give exactly one of local_epochs and local_steps",
    ),
    "two numbers for three": (
        {"preprocessing": {"spacing_mm": [1.0, 1.0]}},
        "spacing_mm",
        "setting 'preprocessing.spacing_mm.2' is missing",
    ),
    "huge crop": (
        {"preprocessing": {"size_voxels": [16, 16, 512]}},
        "preprocessing",
        "size_voxels is [16, 16, 512], expected three whole numbers from 16 to 256",
    ),
    "tiny voxels": (
        {"preprocessing": {"spacing_mm": [0.1, 1.0, 1.0]}},
        "preprocessing",
        "spacing_mm is [0.1, 1.0, 1.0], expected three numbers from 0.3 to 10 mm",
    ),
    "name that is a path": ({"name": "../else"}, "name", "letters, digits, '.', '_' and '-'"),
    "the same sequence twice": ({"sequences": ["t1", "t1"]}, "", "expected each sequence once"),
    "unknown sequence": ({"sequences": ["t1", "flair"]}, "- flair", "found 'flair', input should be 't1', 't2' or"),
    "zero fill without practice": (
        {"preprocessing": {"missing_sequence": "zero_fill"}},
        "",
        "needs augmentation.drop_sequence above 0, such as 0.1",
    ),
    "zero fill of the only sequence": (
        {"preprocessing": {"missing_sequence": "zero_fill"}, "sequences": ["t1"]},
        "",
        "zero_fill needs at least two sequences; write refuse",
    ),
    "enhancement without contrast": (
        {"preprocessing": {"crop": "enhancement"}, "sequences": ["t1", "t2"]},
        "",
        "needs the sequences t1 and t1ce; add them or use lesion or head",
    ),
    "youden with a value": (
        {"evaluation": {"operating_point": {"rule": "youden", "value": 0.9}}},
        "operating_point",
        "rule youden takes no value; delete it",
    ),
    "sensitivity in per cent": (
        {"evaluation": {"operating_point": {"rule": "sensitivity", "value": 90.0}}},
        "operating_point",
        "value is 90.0, expected a share between 0 and 1",
    ),
    "fixed without a value": (
        {"evaluation": {"operating_point": {"rule": "fixed"}}},
        "operating_point",
        "needs a value: the threshold on the logit margin",
    ),
}


@pytest.mark.parametrize(("changes", "place", "advice"), BROKEN.values(), ids=BROKEN)
def test_fault_is_named_with_its_line_and_a_way_out(changes: dict[str, object], place: str, advice: str) -> None:
    text = study_text(**changes)

    message = faults_of(text)

    line = line_of(text, place)
    assert message.startswith("study.yaml: 1 fault\n")
    assert f"line {line}: " in message
    assert advice in message


UNREADABLE = {
    "empty": ("", "found nothing, expected settings of the form `name: value`"),
    "a list": ("- 1\n- 2\n", "found list, expected settings"),
    "given twice": ("name: a\nname: b\n", "line 2, column 1: not readable as YAML: 'name' is given twice, first on"),
    "tab": ("name: a\ntraining:\n\trounds: 3\n", "line 3, column 1: not readable as YAML"),
    "colon in a text": ("name: a: b\n", "quote texts that hold ': ' or '#'"),
    "two documents": ("name: a\n---\nname: b\n", "not readable as YAML: but found another document"),
    "control character": ("name: \x00\n", "unacceptable character"),
    "program": ("name: !!python/object/apply:os.getcwd []\n", "could not determine a constructor for the tag"),
    "no such day": ("name: 2020-02-30\n", "a value is not what YAML takes it for (day is out of range"),
    "a name that is a day": ("2020-01-01: 3\n", "a name is a date or a list"),
    "holds itself": ("&a {name: *a}\n", "or a setting holds itself"),
    "endless": ("[" * 20_000, "nested too deeply"),
}


@pytest.mark.parametrize(("text", "message"), UNREADABLE.values(), ids=UNREADABLE)
def test_text_that_is_no_study_is_refused_in_one_sentence(text: str, message: str) -> None:
    assert message in faults_of(text)


def test_all_faults_of_a_file_are_reported_at_once() -> None:
    message = faults_of(study_text(rounds=0, seed=-1, model={"width": "1"}, training={"optimiser": "sgd"}))

    assert message.startswith("study.yaml: 4 faults\n")
    assert all(name in message for name in ("rounds", "seed", "model.width", "training.optimiser"))


def test_missing_settings_are_all_named_with_what_they_are() -> None:
    message = faults_of("name: a\n")

    for name in ("seed", "rounds", "preprocessing", "training", "participation"):
        assert f"setting {name!r} is missing; add it" in message
    assert "setting 'rounds' is missing; add it (rounds of training)" in message


def test_digest_is_of_the_meaning_and_not_of_the_text() -> None:
    text = study_text()
    reordered = yaml.safe_dump(dict(reversed(STUDY.items())), sort_keys=False)
    written_otherwise = "# for our review board\n" + text.replace("0.001", "1e-3").replace("- 4.0", "- 4")
    with_default = study_text(evaluation={"num_bins": 32})

    digests = {study(each).digest for each in (text, reordered, written_otherwise, with_default)}

    assert reordered != text
    assert "1e-3" in written_otherwise
    assert len(digests) == 1


OTHER_VALUES: dict[str, object] = {
    "name": "other",
    "sequences": ["t1", "t1ce"],
    "preprocessing.spacing_mm": [4.0, 4.0, 5.0],
    "preprocessing.size_voxels": [16, 16, 20],
    "preprocessing.crop": "head",
    "preprocessing.missing_sequence": "zero_fill",
    "preprocessing.registration": "rigid",
    "preprocessing.bias_correction": "n4",
    "model.norm": "batch",
    "model.num_groups": 2,
    "model.width": 0.25,
    "model.stem_stride": 1,
    "model.name": "densenet121",
    "model.dilated": True,
    "model.initial_weights": "0" * 64,
    "training.optimizer": "sgd",
    "training.schedule": "constant",
    "training.class_weighting": "none",
    "training.keep_optimizer_state": True,
    "training.precision": "auto",
    "training.local_steps": 7,
    "training.max_grad_norm": 1.0,
    "training.fedprox_adaptive": True,
    "training.control_variates": True,
    "training.sampling": "class_balanced",
    "aggregation.method": "fedadam",
    "aggregation.server_learning_rate": 0.5,
    "personalization.method": "ditto",
    "participation.held_out": ["hospital-f"],
    "communication.upload": "int8_delta",
    "communication.download": "int8_delta",
    "split.num_folds": 5,
    "evaluation.operating_point.rule": "specificity",
    "evaluation.operating_point.value": 0.8,
    "evaluation.interval": "clopper-pearson",
    "evaluation.prevalence": 0.2,
}
"""A changed value where a larger number is none."""

NEEDED_WITH: dict[str, dict[str, dict[str, object]]] = {
    "model.initial_weights": {"model": {"width": 1.0}},
    "training.local_steps": {"training": {"local_epochs": None}},
    "training.control_variates": {
        "training": {"optimizer": "sgd", "momentum": 0.0, "local_steps": 4, "local_epochs": None}
    },
    "training.sampling": {"training": {"class_weighting": "none"}},
    "split.fold": {"split": {"num_folds": 5}},
    "split.repeat": {"split": {"num_folds": 5}},
}
"""What else must be set for a changed value to be allowed."""


def leaves(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


ALL_SETTINGS = dict(leaves(study(study_text(augmentation={"drop_sequence": 0.1})).model_dump(mode="json")))


@pytest.mark.parametrize("setting", list(ALL_SETTINGS))
def test_digest_changes_with_every_setting(setting: str) -> None:
    values = study(study_text(augmentation={"drop_sequence": 0.1})).model_dump(mode="json")
    for name, others in NEEDED_WITH.get(setting, {}).items():
        values[name] |= others
    before = study(yaml.safe_dump(values)) if setting != "training.local_steps" else study(study_text())
    *path, last = setting.split(".")
    section = values
    for part in path:
        section = section[part]
    old = section[last]
    if setting in OTHER_VALUES:
        section[last] = OTHER_VALUES[setting]
    else:
        section[last] = old + 1 if isinstance(old, int) else old * 0.9 or 0.5

    after = study(yaml.safe_dump(values))

    assert after.digest != before.digest


def test_digest_is_that_of_version_0_2_for_what_that_version_could_say() -> None:
    text = study_text(training={"learning_rate": 1 / 3, "max_grad_norm": 1e-7}, evaluation={"prevalence": 1e-5})
    added = {section: set(names) for section, names in ADDED_SETTINGS.items()}
    whole = dict.fromkeys(("aggregation", "personalization", "communication"), True)
    of_0_2 = study(text).model_dump_json(exclude={**added, **whole})

    assert study(text).digest == hashlib.sha256(of_0_2.encode()).hexdigest()
    assert '"max_grad_norm":1e-7' in of_0_2, "the form of numbers is that of pydantic"


def test_digest_survives_the_way_to_a_site_and_back() -> None:
    here = study(study_text(training={"learning_rate": 1 / 3}))

    there = Study.model_validate_json(here.model_dump_json())

    assert there == here
    assert there.digest == here.digest


def test_study_cannot_be_changed_once_it_is_read() -> None:
    agreed = study(study_text())

    with pytest.raises(ValueError, match="frozen"):
        agreed.rounds = 9


def test_rules_on_a_share_aim_at_ninety_per_cent_unless_told_otherwise() -> None:
    assert study(study_text()).evaluation.operating_point.target == 0.9
    youden = study(study_text(evaluation={"operating_point": {"rule": "youden"}}))
    assert youden.evaluation.operating_point.target is None


@pytest.mark.parametrize(
    ("aggregation", "least"),
    [
        pytest.param({"method": "median"}, 3, id="median"),
        pytest.param({"method": "trimmed_mean", "num_faulty": 2}, 5, id="trimmed mean"),
        pytest.param({"method": "multi_krum", "num_faulty": 1}, 5, id="multi-Krum"),
        pytest.param({"method": "fedadam"}, 1, id="FedAdam"),
    ],
)
def test_round_with_the_quorum_suffices_for_the_method(aggregation: dict[str, object], least: int) -> None:
    enough = study(study_text(aggregation=aggregation, participation={"min_sites": least}))

    assert enough.aggregation.least_sites == least
    if least > 1:
        with pytest.raises(ConfigError, match=rf"needs {least} sites in every round, and .*; set min_sites to {least}"):
            study(study_text(aggregation=aggregation, participation={"min_sites": least - 1}))


def test_sites_that_do_not_train_have_no_model_where_every_site_trains_alone() -> None:
    text = study_text(aggregation={"method": "local"}, participation={"held_out": ["hospital-f"]})

    with pytest.raises(ConfigError, match=r"no model for sites that do not train; delete participation\.held_out"):
        study(text)
