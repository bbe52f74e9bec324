"""Ready-made questions to ask of a tree, an artifact or a guest; one file per subject."""
