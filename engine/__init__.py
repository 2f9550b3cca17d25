"""What is computed and stored: probes, descriptors, distances, calibration, the scan, the store.

Imports nothing of ours. Public names live in the modules, so that importing one of them loads only what it needs
(``engine.scan`` needs no torch, ``engine.encoder`` no store).
"""
