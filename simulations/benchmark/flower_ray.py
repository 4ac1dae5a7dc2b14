"""The same work as a stock Flower app on its simulation engine: `python -m simulations.benchmark.flower_ray ...`.

FedAvg with its two messages a round, as Flower's tutorials write it; arguments as for the plain loop.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch import nn

from common.study import Study
from simulations.benchmark.plain_loop import Patients, new_model, num_right, read_patients, read_study, train_epoch

NUM_WORKERS = 2


class SiteApp(ClientApp):
    """Trains or evaluates site k on Flower's partition k.

    Args:
        study: Path of the study.
        sites: Paths of the sites' files.
    """

    def __init__(self, study: str, sites: Sequence[str]) -> None:
        super().__init__()
        self._study, self._sites = study, list(sites)

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer a message."""
        torch.set_num_threads(1)
        study = read_study(Path(self._study))
        patients = read_patients(Path(self._sites[int(str(context.node_config["partition-id"]))]))
        model = new_model(study)
        model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
        answer = _trained if message.metadata.message_type == "train" else _evaluated
        return Message(answer(model, patients, study), reply_to=message)


def _trained(model: nn.Module, patients: Patients, study: Study) -> RecordDict:
    train_epoch(model, patients, study)
    metrics = MetricRecord({"num-examples": len(patients.labels)})
    return RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})


def _evaluated(model: nn.Module, patients: Patients, study: Study) -> RecordDict:
    num_patients = len(patients.validation_labels)
    return RecordDict(
        {"metrics": MetricRecord({"num-examples": num_patients, "right": num_right(model, patients) / num_patients})}
    )


def main(argv: Sequence[str]) -> int:
    """Carry the run."""
    study = read_study(Path(argv[0]))
    sites = list(argv[1:])
    server = ServerApp()

    @server.main()
    def serve(grid: Grid, context: Context) -> None:
        strategy = FedAvg(min_train_nodes=len(sites), min_evaluate_nodes=len(sites), min_available_nodes=len(sites))
        result = strategy.start(grid, ArrayRecord(new_model(study).state_dict()), num_rounds=study.rounds)
        if len(result.evaluate_metrics_clientapp) != study.rounds:
            raise RuntimeError(f"{len(result.evaluate_metrics_clientapp)} rounds have a result, not {study.rounds}")
        Path(argv[0]).with_suffix(".flower-done").touch()

    run_simulation(
        server,
        SiteApp(argv[0], sites),
        num_supernodes=len(sites),
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": NUM_WORKERS, "include_dashboard": False},
        },
    )
    return 0 if Path(argv[0]).with_suffix(".flower-done").exists() else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
