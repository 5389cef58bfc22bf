"""Measurements behind the figures we quote. `python -m benchmarks` runs all and prints them with their bounds.

Each figure stands beside a reference measured in the same run, so it can be read on any machine: ratios
carry over, microseconds do not.
"""
