"""Parts of the study of k-fold symmetric structures, ``expressiveness.py``."""
