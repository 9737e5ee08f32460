"""Parts of the study of models on QM9."""
