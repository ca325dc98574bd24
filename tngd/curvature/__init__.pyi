from .curvatures import CURVATURES as CURVATURES
from .curvatures import curvature_factor as curvature_factor
from .factor import Factor as Factor
from .factor import Rows as Rows
from .layers import Recorder as Recorder
from .losses import CROSS_ENTROPY as CROSS_ENTROPY
from .losses import Loss as Loss
from .losses import cross_entropy as cross_entropy
from .losses import logistic as logistic
from .losses import mean_squared_error as mean_squared_error

__all__ = [
    # losses
    "CROSS_ENTROPY",
    "Loss",
    "cross_entropy",
    "logistic",
    "mean_squared_error",
    # the factor of a batch
    "CURVATURES",
    "curvature_factor",
    "Factor",
    "Rows",
    "Recorder",
]
