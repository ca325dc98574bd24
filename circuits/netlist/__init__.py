"""Netlist: a design written down for ngspice, KiCad, a buyer and a reviewer, and read back."""
