"""Simulation: circuits in ngspice, one analysis a file, all copies side by side."""
