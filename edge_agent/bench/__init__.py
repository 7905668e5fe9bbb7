"""Benchmarks: trials, their document, tables and reports."""
