"""One file per family of models, and one per piece that families share; each adds its nodes to a `trainer.export.graph.Graph`."""
