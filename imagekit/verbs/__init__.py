"""What can be typed, one file per verb: its docstring is the help, `VERB` says how it is run and what it takes."""
