"""Experiments of many runs: their rows, statistics, tables, figures and pages."""
