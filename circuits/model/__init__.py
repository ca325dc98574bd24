"""Model: calibrated copies as a device, of reduced order, with converters, for any target."""
