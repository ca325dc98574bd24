"""Thermodynamic natural gradient descent on a calibrated model of a stochastic processing unit."""
