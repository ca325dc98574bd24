"""Verification: every copy against the target's inverse and against the law of its own values."""
