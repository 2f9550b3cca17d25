"""The ``hubhound`` command: one small module a command group, assembled lazily."""
