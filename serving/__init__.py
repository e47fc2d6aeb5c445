"""The server of bundles and its client. Imports nothing of the training stack."""
