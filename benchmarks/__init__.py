"""
What we claim about speed, reproducible with one command: ``python benchmarks/run.py`` (see
docs/performance.rst).
"""
