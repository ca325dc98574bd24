"""From a matrix to a stochastic processing unit: synthesis, netlists, ngspice, verification, calibration."""
