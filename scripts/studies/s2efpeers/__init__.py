"""Parts of the study ``scripts/studies/s2ef_peers.py``."""
