"""Training: one optimizer beside others on the same seeds and batches."""
