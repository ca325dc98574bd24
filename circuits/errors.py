"""The two ways a request can fail: the input is not usable, or the simulator did not deliver."""


class InputError(ValueError):
    """The input cannot be used; the message is one sentence: what was expected, what came, what to do."""


class SimulationError(RuntimeError):
    """ngspice is missing, crashed, hung, or returned something that is not a result."""
