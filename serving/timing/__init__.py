"""How long model files take on this machine, and profiles of it for those who cut models elsewhere."""
