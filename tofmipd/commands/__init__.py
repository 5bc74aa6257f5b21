"""The tools beside the daemon: `tofmipd WORD ...`, one module each with a ``main``."""
