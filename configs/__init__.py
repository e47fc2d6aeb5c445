"""Recipes: values only, one job per file, each headed by its command, machine, time and result."""
