"""The two ways a request can fail: the input is not usable, or the simulator did not deliver."""


class InputError(ValueError):
    """The input cannot be used; the message is one sentence: what was expected, what came, what to do."""


class UnstableCopyError(InputError):
    """A drawn copy does not hold the target: its capacitance matrix is not positive definite."""


class SimulationError(RuntimeError):
    """ngspice is missing, crashed, hung, or returned something that is not a result."""


class CoarseBankError(InputError):
    """No codes of the banks come near enough to a target."""
