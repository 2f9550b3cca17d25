"""The demo: a small drawn world, with models that learnt it, to try everything on without a network."""
