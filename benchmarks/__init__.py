"""Benchmarks: how fast the worker is, how late a finding comes, and where the time goes."""
