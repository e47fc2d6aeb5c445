"""The gRPC face of the server: it translates calls to models and their answers back, and computes nothing itself.

`models` holds what is served; `inference`, `vision` and `health` are the three services on top of it; `status` alone turns errors
into gRPC codes; `server` wires them to a repository and takes them up and down.
"""
