"""Calibration: runs in, devices out, judged on held-out programs; codes for the very copy."""
