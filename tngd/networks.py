"""The image networks of the evidence: inputs (b, 1, 28, 28), ten outputs.

The paper's network is a convolutional and two linear layers; it gives no sizes. Ours, `small`, has two convolutions and
two linear layers, 6,218 parameters; `lenet` is LeNet-5 with rectifiers, 61,706 parameters.
"""

from collections.abc import Callable

from torch import nn


def small() -> nn.Module:
    """Two strided convolutions and two linear layers, 6,218 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(144, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


def lenet() -> nn.Module:
    """LeNet-5 with rectifiers, 61,706 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {"small": small, "lenet": lenet}
