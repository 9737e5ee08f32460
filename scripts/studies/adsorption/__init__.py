"""Parts of the study ``scripts/studies/is2re_adsorption.py``."""
