"""Report: tables, figures and one HTML page from stored results."""
