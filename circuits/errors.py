"""Errors: an input that cannot be used, and a simulation that failed."""


class InputError(ValueError):
    """The input cannot be used; the message is one sentence: expected, got, what to do."""


class UnstableCopyError(InputError):
    """A drawn copy does not hold the target: its capacitance matrix is not positive definite."""


class SimulationError(RuntimeError):
    """ngspice is missing, crashed, did not finish, or returned no valid result."""


class CoarseBankError(InputError):
    """No codes of the banks are near enough to a target."""
