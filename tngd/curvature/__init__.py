"""Curvature: the factor of a batch's curvature, without a matrix of parameters by parameters."""
