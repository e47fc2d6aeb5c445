"""Commands that compose trainer and serving: the launcher, the quickstart, and the name `vitforge` for them all."""
