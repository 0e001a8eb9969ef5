"""The MPELU operator: its definition, and later the backends that are held to it."""
