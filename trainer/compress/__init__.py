"""Compression: score → plan → cut and repair. A large teacher becomes a small dense model that needs no training to be useful."""
