"""The benchmarks of compression: one verb each, resumable, with a table, a plot and a JSON record. See `__main__`."""
