from .methods import METHODS as METHODS
from .methods import make_optimizer as make_optimizer
from .mnist import load_mnist as load_mnist
from .mnist_runs import ComparisonOptions as ComparisonOptions
from .mnist_runs import train_mnist as train_mnist
from .small_tasks import TASKS as TASKS
from .small_tasks import TaskMethod as TaskMethod
from .small_tasks import check_budget as check_budget
from .small_tasks import train as train
from .small_tasks import train_once as train_once
from .small_tasks import train_task_file as train_task_file
from .squad import COMPARED as COMPARED
from .squad import SquadSettings as SquadSettings
from .squad import train_squad as train_squad
from .studies import STUDIES as STUDIES
from .trial import Outcome as Outcome
from .trial import Trial as Trial
from .trial import batch_order as batch_order
from .trial import run_trial as run_trial

__all__ = [
    # trials
    "Outcome",
    "Trial",
    "batch_order",
    "run_trial",
    # small tasks
    "TASKS",
    "TaskMethod",
    "check_budget",
    "train",
    "train_once",
    "train_task_file",
    # comparisons on MNIST
    "load_mnist",
    "ComparisonOptions",
    "train_mnist",
    "METHODS",
    "make_optimizer",
    "STUDIES",
    # question answering
    "COMPARED",
    "SquadSettings",
    "train_squad",
]
