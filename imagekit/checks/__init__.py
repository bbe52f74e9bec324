"""Questions to ask of a tree, an artifact or a guest; a file per noun. standard.py holds ready-made tests to import."""
