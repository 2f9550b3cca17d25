"""Stores of models and outputs: embedded (``edge``) and Qdrant server (``server``), one interface (``base``)."""
