"""Benchmarks: ``pytest bench`` measures, ``python bench/report.py`` draws."""
