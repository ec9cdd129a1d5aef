"""
Measurements of what this project says about its speed: ``python benchmarks/run.py``.

The results are in ``benchmarks/results/results.rst``.
"""
