"""
What we claim about speed, reproducible with one command: ``python benchmarks/run.py`` (see
benchmarks/results/results.rst).
"""
