"""Getting models in: where ids come from, how a repository becomes a callable model, how it is probed."""
