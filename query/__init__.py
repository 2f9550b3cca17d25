"""Getting answers out: search, evidence, the demo and the ``hubhound`` command."""
