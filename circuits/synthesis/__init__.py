"""Synthesis: from a Fisher matrix to a board, a program and stable copies."""
