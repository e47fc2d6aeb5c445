"""Benchmarks of the trainer on this machine, as ratios within one run; `python -m tools.bench_training --help` lists them."""
