"""FedAvg over a 3D ResNet10 as Flower's tutorials write it: two messages a round, images that are noise."""

import json
import time
from pathlib import Path

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

BATCH, SIZE, NUM_BATCHES = 8, 16, 2
THREADS = 1

client = ClientApp()
server = ServerApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    """Train the model that arrived for two batches."""
    import torch
    from monai.networks.nets import resnet10

    started = time.monotonic()
    torch.set_num_threads(THREADS)
    model = resnet10(spatial_dims=3, n_input_channels=3, num_classes=2)
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for number in range(NUM_BATCHES):
        images = torch.randn(BATCH, 3, SIZE, SIZE, SIZE, generator=torch.Generator().manual_seed(number))
        labels = torch.arange(BATCH) % 2
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    metrics = MetricRecord({"seconds": time.monotonic() - started, "num-examples": BATCH * NUM_BATCHES})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(content, reply_to=message)


@client.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Run the model that arrived on a batch."""
    import torch
    from monai.networks.nets import resnet10

    started = time.monotonic()
    torch.set_num_threads(THREADS)
    model = resnet10(spatial_dims=3, n_input_channels=3, num_classes=2)
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    model.eval()
    with torch.no_grad():
        model(torch.zeros(BATCH, 3, SIZE, SIZE, SIZE))
    metrics = MetricRecord({"seconds": time.monotonic() - started, "num-examples": BATCH})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """FedAvg, with the time at the end of each round and the longest computation of each phase."""
    from monai.networks.nets import resnet10

    sites, rounds = int(context.run_config["sites"]), int(context.run_config["rounds"])
    ends: list[float] = []
    longest: dict[str, list[float]] = {"train": [], "evaluate": []}

    def note(phase: str, replies: list[RecordDict]) -> MetricRecord:
        seconds = [float(str(record["seconds"])) for reply in replies for record in reply.metric_records.values()]
        longest[phase].append(max(seconds))
        return MetricRecord({"seconds": max(seconds)})

    def at_end_of_round(round: int, arrays: ArrayRecord) -> None:
        ends.append(time.monotonic())  # Flower calls it once before the first round as well

    strategy = FedAvg(
        min_train_nodes=sites,
        min_evaluate_nodes=sites,
        min_available_nodes=sites,
        train_metrics_aggr_fn=lambda replies, key: note("train", replies),
        evaluate_metrics_aggr_fn=lambda replies, key: note("evaluate", replies),
    )
    model = resnet10(spatial_dims=3, n_input_channels=3, num_classes=2)
    strategy.start(grid, ArrayRecord(model.state_dict()), num_rounds=rounds, evaluate_fn=at_end_of_round)
    Path(str(context.run_config["out"])).write_text(json.dumps({"ends": ends, "longest": longest}), encoding="utf-8")
