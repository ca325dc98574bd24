"""Optimizer: gradients go through the device, parameters move; resumed bit for bit."""
